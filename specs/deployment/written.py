"""The declaration as it is written: the top of it, and the checks that concern several of its parts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from specs import quantities as q
from specs.deployment import models as m
from specs.deployment.cables import check_network
from specs.deployment.grammar import Field, ListOf, MapOf, OneOrMore, OrAuto, Place, Record, Shape, mapping_of
from specs.deployment.scalars import (
    DURATION,
    POSITIVE_SHARE,
    POWER,
    SHARE,
    TOKENS,
    Count,
    Flag,
    Name,
    OneOf,
    Parsed,
    Quantity,
    Text,
)  # fmt: skip
from specs.deployment.stated import finish_groups
from specs.deployment.written_groups import GROUP
from specs.deployment.written_supply import HARDWARE, MODEL
from specs.deployment.written_traffic import CLASS
from specs.engine_rules import capable
from specs.errors import InputError, nearest_names
from specs.quantities import shown
from specs.yaml_source import Mapping as MappingNode
from specs.yaml_source import Node, Sequence

OBJECTIVES = {"minimise": ("cost", "gpus", "energy", "carbon"), "maximise": ("throughput", "goodput", "traffic")}
ROUTERS = ("least_outstanding", "round_robin", "least_kv", "power_of_two", "prefix_aware", "sticky")
ENGINES = ("capstan", "vllm", "sglang", "trtllm")
OBJECTIVE_SAYS = "minimise cost, gpus, energy or carbon; or maximise throughput, goodput or traffic"


def _objective(text: str) -> m.Objective:
    words = text.replace("minimize", "minimise").replace("maximize", "maximise").split()
    if len(words) == 2 and words[1] in OBJECTIVES.get(words[0], ()):
        return m.Objective.model_validate({"sense": words[0], "quantity": words[1]})
    known = [f"{sense} {quantity}" for sense, quantities in OBJECTIVES.items() for quantity in quantities]
    raise InputError(f"unknown objective {shown(text)}", nearest=nearest_names(text[:80], known, count=2))


_WORDS = "|".join(f"minimi[sz]e +{w}" for w in OBJECTIVES["minimise"])
OBJECTIVE = Parsed(OBJECTIVE_SAYS, _objective, f"^({_WORDS}|maximi[sz]e +({'|'.join(OBJECTIVES['maximise'])}))$")
LIMITS = Record(
    m.LimitsSpec,
    {
        "budget": Field(Quantity(q.USD_PER_HOUR, q.parse_usd_per_hour, positive=True), "of the whole plan",
                        "budget_usd_per_hour"),
        "survive_node_failures": Field(Count(low=0, high=1000), "nodes that may fail with every SLO still met"),
        "gpus": Field(MapOf(Count(), "a mapping from model to devices"), "at most so many devices per model"),
        "utilisation": Field(POSITIVE_SHARE, "headroom: the promises hold at 1 / this share of the traffic"),
        "confidence": Field(SHARE, "steps and first tokens as late as this quantile of measured ones was"),
        "power": Field(POWER, "of all devices used", "power_w"),
    },
)  # fmt: skip
_COUNTS = OrAuto(OneOrMore(Count()))
_PARALLEL = OrAuto(OneOrMore(Count(high=1024)))
MODEL_CHOICES = Record(
    m.ModelChoices,
    {
        "tensor_parallel": Field(_PARALLEL, "devices that share every layer"),
        "pipeline_parallel": Field(_PARALLEL, "stages of layers"),
        "max_num_seqs": Field(_COUNTS, "sequences in one batch"),
        "max_num_batched_tokens": Field(OrAuto(OneOrMore(TOKENS)), "token budget of one step"),
        "replicas": Field(_COUNTS, "running copies"),
        "pool": Field(OrAuto(OneOrMore(Name())), "pools the model may use"),
        "stages_over": Field(
            ListOf(Name()), "pools that the pipeline stages of one replica may stand in, in the order of the stages"
        ),
        "attention_data_parallel": Field(_PARALLEL, "groups of ranks that share out requests in attention (mixtures)"),
        "expert_parallel": Field(_PARALLEL, "ranks that experts are spread over; 1 cuts every expert"),
        "prefix_caching": Field(OrAuto(Flag()), "whether prompts that begin alike are computed once"),
        "groups": Field(ListOf(GROUP), "all replicas of the model as they stand: nothing is chosen"),
    },
)


class ChoicesShape(Shape[m.Choices]):
    """`engine` and `disaggregation`, and one field per model, called as the model is."""

    own: ClassVar[dict[str, Field]] = {
        "engine": Field(OrAuto(OneOrMore(OneOf(ENGINES))), "engine the plan is for (default vllm)"),
        "disaggregation": Field(OneOf(("auto", "never", "always")), "prefill and decode apart (default auto)"),
        "router": Field(OneOf(ROUTERS), "how a replica of a group is chosen (default least_outstanding)"),
    }
    says = "a mapping with engine, disaggregation, or the name of a model"

    def read(self, node: Node, at: Place) -> m.Choices:
        node = mapping_of(node, at, self.says)
        values: dict[str, Any] = {}
        models: dict[str, m.ModelChoices] = {}
        for key, child in node.entries.items():
            place = at.of(key, node.key_lines[key])
            if key in self.own:
                values[key] = self.own[key].shape.read(child, place)
            elif isinstance(child, MappingNode):  # whether the model exists is checked with the whole document
                models[key] = MODEL_CHOICES.read(child, place)
            elif isinstance(child, Sequence):
                raise place.error("is a list", "a mapping of choices; replicas that stand already go under `groups:`")
            else:
                raise place.error("unknown field", self.says, nearest_names(key[:80], self.own))
        values["engine"] = values.get("engine") or m.Choices().engine
        return m.Choices(models=models, **values)

    def schema(self) -> dict[str, Any]:
        own = {name: {"description": field.doc, **field.shape.schema()} for name, field in self.own.items()}
        return {"type": "object", "minProperties": 1, "properties": own,
                "additionalProperties": {"description": "choices of one model", **MODEL_CHOICES.schema()}}  # fmt: skip


SWITCHING = Record(
    m.SwitchingSpec,
    {
        "start": Field(DURATION, "until a replica serves (default: its weights over `hardware.host.nvme`, else the "
                       "network, and a minute for the engine)", "start_s"),
        "cost": Field(Quantity(q.USD, q.parse_usd), "for each replica that starts, beside the rent of its devices "
                      "(default: none)", "usd_per_replica"),
    },
)  # fmt: skip
SCHEDULE = Record(
    m.ScheduleSpec,
    {
        "slot": Field(Quantity(q.SECONDS, q.parse_seconds, positive=True), "longest piece of a diurnal swing that has "
                      "one plan (default 2h)", "slot_s"),
        "switching": Field(SWITCHING, "what changing from one plan to the next takes"),
    },
)  # fmt: skip


def _finish_document(values: dict[str, Any], at: Place) -> None:
    """Defaults and checks across models, hardware, traffic, limits and choices."""
    values.setdefault("name", "deployment")
    models: dict[str, m.ModelSpec] = values["models"]
    hardware: m.HardwareSpec = values["hardware"]
    pools = tuple(pool.name for pool in hardware.pools)
    for name in models:
        if name in ChoicesShape.own:
            message = f"a model cannot be called {name!r}: choices has a field of that name"
            raise at.error(message, "another name", field=f"models.{name}")
    _refuse_twice(pools, at, "hardware.pools")
    _refuse_twice(tuple(item.name for item in values["traffic"]), at, "traffic")
    values["traffic"] = _traffic_of_models(values["traffic"], models, at)
    for index, link in enumerate(hardware.network.links):
        for end, pool in enumerate(link.between):
            _refuse_unknown(pool, pools, at, f"hardware.network.links[{index}].between[{end}]", "pool")
    try:
        check_network(hardware)
    except InputError as error:
        raise at.error(error.message, error.expected, field=f"hardware.network.{error.field}") from None
    limits: m.LimitsSpec = values.get("limits", m.LimitsSpec())
    for name in limits.gpus:
        _refuse_unknown(name, models, at, f"limits.gpus.{name}", "model")
    choices: m.Choices = values.get("choices", m.Choices())
    for name, choice in choices.models.items():
        if name not in models:
            words = (*models, *ChoicesShape.own)
            expected = f"engine, disaggregation or a model: {', '.join(models)}"
            raise at.error("names no model", expected, nearest_names(name[:80], words), field=f"choices.{name}")
        for pool in choice.pool or ():
            _refuse_unknown(pool, pools, at, f"choices.{name}.pool", "pool")
        _check_stages_over(name, choice, choices.engine, pools, at)
    if choices.stated:
        values["choices"] = finish_groups(values, choices, at)
    _prices(values, hardware, limits, at)
    if over := [name for name, choice in choices.models.items() if choice.stages_over]:
        _refuse_beside_stages_over(values, limits, choices, at, f"choices.{over[0]}.stages_over")


def _refuse_beside_stages_over(
    values: dict[str, Any], limits: m.LimitsSpec, choices: m.Choices, at: Place, field: str
) -> None:
    """What is not planned for replicas over several pools."""
    quantity = values["objective"].quantity
    if quantity in ("energy", "carbon"):
        message = f"is not planned for the objective {values['objective']}"
        raise at.error(message, "another objective, or no stages_over", field=field)
    if limits.survive_node_failures:
        message = "is not planned beside limits.survive_node_failures"
        raise at.error(message, "one of the two", field=field)
    if choices.disaggregation == "always":
        message = "does not go with disaggregation: always: such replicas do both phases"
        raise at.error(message, "disaggregation: auto or never, or no stages_over", field=field)


def _check_stages_over(
    name: str, choice: m.ModelChoices, engines: tuple[str, ...], pools: tuple[str, ...], at: Place
) -> None:
    """Several known pools, an engine that runs stages on unlike machines, and as many stages as that takes."""
    over, field = choice.stages_over, f"choices.{name}.stages_over"
    if over is None:
        return
    for pool in over:
        _refuse_unknown(pool, pools, at, field, "pool")
    if len(set(over)) < max(2, len(over)):
        raise at.error("has to name two or more different pools", "[old, new], or no stages_over", field=field)
    able = [engine for engine in ENGINES if capable(engine, "unlike_stages")]
    if not set(able) & set(engines):
        message = f"{' and '.join(engines)} cannot run the stages of one replica on unlike machines"
        raise at.error(message, f"engine: {' or '.join(able)}", field=field)
    if choice.groups:
        raise at.error("contradicts `groups`, which name their pools", "one of the two", field=field)
    if choice.pipeline_parallel is not None and max(choice.pipeline_parallel) < 2:
        message = "needs pipeline stages, and pipeline_parallel allows none"
        raise at.error(message, "pipeline_parallel: 2 or more, or no stages_over", field=field)


def _traffic_of_models(
    traffic: tuple[m.TrafficClass, ...], models: dict[str, m.ModelSpec], at: Place
) -> tuple[m.TrafficClass, ...]:
    """The classes with their model filled in where there is only one; every model must have traffic."""
    classes = []
    for index, item in enumerate(traffic):
        field = f"traffic[{index}]"
        if not item.model and len(models) > 1:
            raise at.error("'model' is missing", f"model: one of {', '.join(models)}", field=field)
        name = item.model or next(iter(models))
        _refuse_unknown(name, models, at, f"{field}.model", "model")
        classes.append(item.model_copy(update={"model": name}))
    for name in models:
        if all(item.model != name for item in classes):
            raise at.error("has no traffic", f"a class of traffic with model: {name}", field=f"models.{name}")
    return tuple(classes)


def _prices(values: dict[str, Any], hardware: m.HardwareSpec, limits: m.LimitsSpec, at: Place) -> None:
    """Cost and budgets need a price on every pool; without an objective, cost where all is priced, else devices."""
    unpriced = [(i, pool.name) for i, pool in enumerate(hardware.pools) if pool.usd_per_gpu_hour is None]
    if "objective" not in values:
        values["objective"] = m.Objective(quantity="gpus" if unpriced else "cost")
    needs = None
    if values["objective"].quantity == "cost":
        needs = f"objective: {values['objective']}"
    elif limits.budget_usd_per_hour is not None:
        needs = "limits.budget"
    if needs and unpriced:
        index, name = unpriced[0]
        message = f"pool {name!r} has no price, and {needs} needs one on every pool"
        raise at.error(message, "price: $2.90/h", field=f"hardware.pools[{index}]")


def _refuse_twice(names: tuple[str, ...], at: Place, field: str) -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            raise at.error(f"the name {name!r} stands twice", "different names", field=f"{field}[{index}].name")


def _refuse_unknown(name: str, names: Iterable[str], at: Place, field: str, what: str) -> None:
    known = tuple(names)
    if name not in known:
        expected = f"one of {', '.join(known)}"
        raise at.error(f"names no {what}: {shown(name)}", expected, nearest_names(name, known), field=field)


DEPLOYMENT = Record(
    m.DeploymentSpec,
    {
        "apiVersion": Field(OneOf(("capstan/v1",)), "version of this format", "api_version"),
        "kind": Field(OneOf(("Deployment",)), "what this file is"),
        "name": Field(Name(), "what the deployment is called (default: the file's name)"),
        "models": Field(MapOf(MODEL, "a mapping from name to model"), "the models to serve", required=True),
        "hardware": Field(HARDWARE, "what may be used", required=True),
        "traffic": Field(ListOf(CLASS), "the requests, by class", required=True),
        "objective": Field(OBJECTIVE, "what to optimise (default: cost where all pools are priced, else gpus)"),
        "limits": Field(LIMITS, "what the plan must keep to"),
        "choices": Field(ChoicesShape(), "what the planner may decide; one value is a pin"),
        "measured": Field(Text("a CSV file beside the spec"), "measured request rates, which stand for the cost model"),
        "schedule": Field(SCHEDULE, "how `capstan schedule` cuts the day, and what changing plans takes"),
    },
    _finish_document,
)


def written_schema() -> dict[str, Any]:
    """JSON schema of a deployment file as people write it, for editors and YAML language servers."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Capstan deployment"}
    return head | DEPLOYMENT.schema()
