"""A model whose choices leave one configuration is a stated group: for estimates of specs that pin everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planner.candidates.layouts import is_mixture
from specs.architecture import load_architecture
from specs.deployment import DeploymentSpec, ModelChoices, StatedGroup
from specs.errors import InputError

NEEDED = ("replicas", "tensor_parallel", "pipeline_parallel", "max_num_seqs", "max_num_batched_tokens")
OF_MIXTURES = ("attention_data_parallel", "expert_parallel")


def with_groups(spec: DeploymentSpec, base_dir: str | Path) -> DeploymentSpec:
    """The spec with a group for every model that states none, made of its pins.

    Raises `InputError` that names what is left to the planner.
    """
    models = dict(spec.choices.models)
    for name in spec.models:
        choices = spec.choices.of(name)
        if not choices.groups:
            models[name] = choices.model_copy(update={"groups": (_group(spec, name, choices, Path(base_dir)),)})
    return spec.model_copy(update={"choices": spec.choices.model_copy(update={"models": models})})


def _group(spec: DeploymentSpec, name: str, choices: ModelChoices, base_dir: Path) -> StatedGroup:
    model = spec.models[name]
    mixture = is_mixture(load_architecture(model.architecture, base_dir=base_dir))
    needed = (*NEEDED, *OF_MIXTURES) if mixture else NEEDED
    pins: dict[str, Any] = {key: getattr(choices, key) for key in (*NEEDED, *OF_MIXTURES)}
    open_choices = [f"choices.{name}.{key}" for key in needed if pins[key] is None or len(pins[key]) != 1]
    pools = choices.pool or tuple(pool.name for pool in spec.hardware.pools)
    if len(pools) != 1:
        open_choices.append(f"choices.{name}.pool")
    if len(spec.choices.engine) != 1:
        open_choices.append("choices.engine")
    open_choices += [f"models.{name}.{key}" for key in ("weights", "kv_cache") if len(getattr(model, key)) > 1]
    if model.speculative is not None:
        open_choices.append(f"models.{name}.speculative (draft_tokens of a group pins it)")
    if spec.choices.disaggregation == "always":
        open_choices.append("choices.disaggregation (groups with a role pin it)")
    if choices.stages_over is not None:
        open_choices.append(f"choices.{name}.stages_over")
    if open_choices:
        raise InputError(
            f"an estimate chooses nothing, and these are left to the planner: {', '.join(open_choices)}",
            field=f"choices.{name}",
            expected=f"one value of each, or choices.{name}.groups; `capstan plan` chooses them",
        )
    return StatedGroup(
        name=name,
        pool=pools[0],
        engine=spec.choices.engine[0],
        prefix_caching=choices.prefix_caching,
        **{key: values[0] for key, values in pins.items() if values is not None and len(values) == 1},
    )
