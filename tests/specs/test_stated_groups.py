"""`choices.MODEL.groups`: what a group leaves out, and every way in which groups contradict the rest of the file."""

from __future__ import annotations

import pytest

from specs.deployment import DeploymentSpec, StatedGroup, parse_deployment, resolved
from specs.deployment.stated import refuse_stated, takers
from specs.document import DType
from specs.errors import InputError

OLD = "{name: old, pool: a100, replicas: 2, tensor_parallel: 4}"
NEW = "{name: new, pool: h100, replicas: 2, tensor_parallel: 2, serves: {talk: 60%}}"
PREFILL = "{name: pre, pool: h100, role: prefill, replicas: 1, hands_over_to: dec}"
DECODE = "{name: dec, pool: h100, role: decode, replicas: 1}"
SPANNING = "{name: both, replicas: 2, tensor_parallel: 2, stage_pools: [a100, h100]}"
TEXT = """\
models:
  chat: {{architecture: Qwen/Qwen3-8B{model}}}
  code: Qwen/Qwen3-8B
hardware:
  pools:
    - {{name: a100, device: a100-sxm, count: 12, gpus_per_node: 4}}
    - {{name: h100, device: h100-sxm, count: 8}}
traffic:
  - {{name: talk, model: chat, arrivals: 1/s, prompt_tokens: 10, output_tokens: 10, slo: {{ttft: {{p90: 1s}}}}}}
  - {{name: sums, model: chat, arrivals: 1/s, prompt_tokens: 10, output_tokens: 10, slo: {{ttft: {{p90: 1s}}}}}}
  - {{name: edit, model: code, arrivals: 1/s, prompt_tokens: 10, output_tokens: 10, slo: {{ttft: {{p90: 1s}}}}}}
choices:
{choices}
  chat:
{pins}
    groups:
{groups}
"""


def text_of(*groups: str, pins: str = "", choices: str = "  engine: vllm", model: str = "") -> str:
    return TEXT.format(
        model=model,
        choices=choices,
        pins=f"    {pins}" if pins else "",
        groups="".join(f"      - {group}\n" for group in groups),
    )


def spec_of(*groups: str, **parts: str) -> DeploymentSpec:
    return parse_deployment(text_of(*groups, **parts), "fleet.yaml").spec


def groups_of(*groups: str, **parts: str) -> tuple[StatedGroup, ...]:
    return spec_of(*groups, **parts).choices.of("chat").groups


def error_of(*groups: str, **parts: str) -> InputError:
    with pytest.raises(InputError) as raised:
        spec_of(*groups, **parts)
    return raised.value


def test_what_a_group_says_is_what_it_is():
    old, new = groups_of(OLD, NEW.replace("replicas", "engine: sglang, engine_version: 0.5.6.post2, replicas"))
    assert (old.name, old.pool, old.replicas, old.gpus, old.engine) == ("old", "a100", 2, 4, "vllm")
    assert (old.max_num_seqs, old.prefix_caching, old.serves) == (None, None, None)
    assert (new.engine, new.engine_version, new.serves) == ("sglang", "0.5.6.post2", {"talk": 0.6})


def test_names_pools_and_engines_that_are_left_out_follow_from_the_rest():
    groups = groups_of("{replicas: 1}", "{replicas: 2}", pins="pool: h100", choices="  engine: sglang")
    assert [(group.name, group.pool, group.engine) for group in groups] == [
        ("chat-0", "h100", "sglang"),
        ("chat-1", "h100", "sglang"),
    ]


def test_pins_beside_groups_hold_for_all_of_them():
    first, second = groups_of(
        "{pool: a100, replicas: 1}", "{pool: h100, replicas: 1, tensor_parallel: 2}", pins="tensor_parallel: 2"
    )
    assert first.tensor_parallel == second.tensor_parallel == 2


def test_stages_are_as_many_as_are_listed():
    (group,) = groups_of("{pool: h100, replicas: 1, pipeline_stages: [20, 16]}")
    assert (group.pipeline_parallel, group.pipeline_stages, group.gpus) == (2, (20, 16), 2)


def test_stages_in_several_pools_take_devices_of_each():
    (group,) = groups_of(SPANNING.replace("[a100, h100]", "[a100, a100, h100]"))
    assert (group.pool, group.pipeline_parallel, group.gpus) == ("a100", 3, 6)
    assert group.gpus_by_pool == {"a100": 4, "h100": 2}


def test_types_that_groups_state_are_declared_by_that():
    spec = spec_of(OLD, NEW.replace("replicas", "kv_cache: fp8, replicas"))
    assert spec.models["chat"].kv_cache == (DType.BF16, DType.FP8)
    assert spec.models["code"].kv_cache == (DType.BF16,)


def test_the_only_decode_group_takes_what_prefill_groups_hand_over():
    prefill, _ = groups_of(PREFILL.replace(", hands_over_to: dec", ""), DECODE)
    assert prefill.hands_over_to == "dec"


def test_who_takes_a_class():
    alone = NEW.replace("{talk: 60%}", "sums")
    for groups, talk, sums in (
        ((OLD, NEW), [0, 1], [0]),
        ((OLD, alone), [0], [0, 1]),
        ((OLD, NEW.replace("60%", "100%")), [1], [0]),
        ((PREFILL, DECODE, OLD), [0, 2], [0, 2]),
    ):
        found = groups_of(*groups)
        assert (takers(found, "talk"), takers(found, "sums")) == (talk, sums)


def test_engines_are_those_to_choose_from_and_those_that_are_stated():
    one = spec_of(NEW.replace("replicas", "engine: trtllm, replicas"), OLD)
    assert one.engines == ("vllm", "trtllm")
    assert spec_of(OLD.replace("replicas", "engine: sglang, replicas")).engines == ("vllm", "sglang")  # code is chosen


def test_a_resolved_spec_reads_as_the_same_one():
    spec = spec_of(OLD, NEW, PREFILL, DECODE)
    assert DeploymentSpec.model_validate(resolved(spec)) == spec
    assert "groups" not in resolved(spec_of(OLD))["choices"]["models"].get("code", {})


def test_a_list_where_groups_are_meant_is_refused_with_the_way_to_write_it():
    with pytest.raises(InputError, match=r"choices\.chat: is a list; expected .* go under `groups:`"):
        parse_deployment(text_of(OLD).replace("  chat:\n\n    groups:\n", "  chat:\n"), "fleet.yaml")


WRONG = [
    ((OLD.replace("a100", "a10"),), {}, "groups[0].pool", "names no pool", "a100"),
    (("{name: old, replicas: 1}",), {}, "groups[0]", "does not say in which pool", None),
    ((OLD.replace("replicas", "engine: vlm, replicas"),), {}, "groups[0].engine", "unknown value", "vllm"),
    ((OLD,), {"choices": "  engine: [vllm, sglang]"}, "groups[0]", "which engine", None),
    ((OLD.replace("}", ", engine_version: newest}"),), {}, "groups[0].engine_version", "no version", None),
    ((OLD.replace("replicas: 2", "replicas: 4"),), {}, "groups[0].replicas", "4 replicas of 4 devices are 16", None),
    ((OLD, OLD.replace("old", "older")), {}, "groups[1].replicas", "beside 8 of other groups", None),
    ((OLD, NEW.replace("new", "old")), {}, "groups[1].name", "stands twice", None),
    ((OLD, NEW.replace("talk", "tlak")), {}, "groups[1].serves.tlak", "names no class", "talk"),
    ((OLD, NEW.replace("talk", "edit")), {}, "groups[1].serves.edit", "is of model code", None),
    ((OLD.replace("4}", "4, serves: {talk: 50%}}"), NEW), {}, "groups[1].serves", "110% of class", None),
    ((OLD.replace("4}", "4, serves: {talk: 30%}}"), NEW), {}, "groups[1].serves", "10% of class", None),
    ((NEW.replace("60%", "100%"),), {}, "groups[0].serves", "100% of class sums is served by no group", None),
    ((OLD, NEW.replace("{talk: 60%}", "{talk: 0%}")), {}, "groups[1].serves.talk", "zero", None),
    (
        (OLD, NEW.replace("{talk: 60%}", "{talk: 100%, sums: 100%}")),
        {}, "groups[0]", "old takes no requests", None,
    ),
    ((OLD.replace("replicas", "nodes: [0, 3], replicas"),), {}, "groups[0].nodes", "no node 3", None),
    ((OLD,), {"pins": "tensor_parallel: 2"}, "groups[0].tensor_parallel", "tensor_parallel 4 is not allowed", None),
    (("{pool: h100, replicas: 1}",), {"pins": "tensor_parallel: [2, 4]"}, "groups[0]", "is not stated", None),
    ((OLD,), {"pins": "replicas: 3"}, "groups[0].replicas", "the groups have 2 replicas", None),
    (
        (OLD.replace("replicas", "pipeline_parallel: 3, pipeline_stages: [20, 16], replicas"),),
        {}, "groups[0].pipeline_stages", "lists 2 stages", None,
    ),
    (
        (OLD.replace("replicas", "kv_cache: fp8, replicas"),), {"model": ", kv_cache: bf16"},
        "groups[0].kv_cache", "is not declared", None,
    ),
    ((OLD,), {"model": ", weights: [bf16, fp8]"}, "groups[0]", "does not say its weights", None),
    ((OLD.replace("replicas", "draft_tokens: 2, replicas"),), {}, "groups[0].draft_tokens", "no speculative", None),
    (
        (OLD.replace("replicas", "draft_tokens: 5, replicas"),),
        {"model": ", speculative: {method: ngram, acceptance: 50%, max_draft: 4}"},
        "groups[0].draft_tokens", "more than models.chat.speculative.max_draft", None,
    ),
    ((PREFILL.replace("dec}", "dek}"), DECODE), {}, "groups[0].hands_over_to", "names no decode group", "dec"),
    ((PREFILL.replace(", hands_over_to: dec", ""),), {}, "groups[0]", "does not say which decode group", None),
    ((OLD, DECODE), {}, "groups[1].role", "no prefill group hands over", None),
    ((OLD.replace("4}", "4, hands_over_to: new}"), NEW), {}, "groups[0].hands_over_to", "hands nothing", None),
    ((PREFILL, DECODE.replace("1}", "1, serves: talk}")), {}, "groups[1].serves", "takes what is handed", None),
    ((PREFILL, DECODE.replace("role", "kv_cache: fp8, role")), {}, "groups[0]", "kv_cache is the default", None),
    ((PREFILL, DECODE.replace("role", "engine: sglang, role")), {}, "groups[0]", "engine is vllm", None),
    ((PREFILL, DECODE), {"choices": "  disaggregation: never"}, "groups[0].role", "disaggregation is never", None),
    ((OLD,), {"choices": "  disaggregation: always"}, "groups[0]", "disaggregation is always", None),
    ((SPANNING.replace("h100]", "h10]"),), {}, "groups[0].stage_pools", "names no pool", "h100"),
    ((SPANNING.replace("h100]", "a100]"),), {}, "groups[0].stage_pools", "all stages stand in one pool", None),
    ((SPANNING.replace("h100]", "h100, a100]"),), {}, "groups[0].stage_pools", "follow each other", None),
    ((SPANNING.replace("}", ", pool: h100}"),), {}, "groups[0].pool", "the first stage stands in a100", None),
    ((SPANNING.replace("}", ", nodes: 0}"),), {}, "groups[0].nodes", "in several pools", None),
    ((SPANNING.replace("}", ", pipeline_stages: [20, 10, 6]}"),), {}, "groups[0].stage_pools", "lists 2 stages", None),
    ((SPANNING.replace("s: 2", "s: 5"),), {}, "groups[0].replicas", "5 replicas of 2 devices are 10", None),
    ((OLD,), {"pins": "stages_over: [a100, h100]"}, "stages_over", "contradicts `groups`", None),
]  # fmt: skip


@pytest.mark.parametrize(("groups", "parts", "field", "words", "nearest"), WRONG)
def test_contradictions_are_refused_where_they_stand(groups, parts, field, words, nearest):
    error = error_of(*groups, **parts)
    assert words in error.message, error
    assert error.field == f"choices.chat.{field}"
    assert error.file == "fleet.yaml"
    assert error.line is not None
    assert error.line > 14  # below `choices:`
    assert nearest is None or nearest in error.nearest


def test_other_questions_are_refused_by_the_name_of_the_groups():
    with pytest.raises(InputError, match="all replicas of chat are stated") as raised:
        refuse_stated(spec_of(OLD), "a schedule")
    assert raised.value.field == "choices.chat.groups"
