"""Tiny specs for tests of the planner: small models, low rates, so that a plan takes a fraction of a second."""

from __future__ import annotations

from pathlib import Path

from planner.plan import make_plan
from planner.problem import Problem, pose
from specs.deployment import (
    DeploymentSpec,
    HardwareSpec,
    ModelSpec,
    PoolSpec,
    TrafficClass,
    load_deployment,
    parse_deployment,
)
from specs.plan import Plan

L40S = "{name: l40s, device: l40s, count: 8, gpus_per_node: 4, price: $1/h, rent: gpu}"
H100 = "{name: h100, device: h100-sxm, count: 8, gpus_per_node: 8, price: $3/h, rent: gpu}"
CHAT = """  - name: chat
    model: small
    arrivals: 4/s
    prompt_tokens: 500
    output_tokens: 60
    slo: {ttft: {p90: 1s}, tpot: {p90: 50ms}}
"""


def text_of(
    *,
    models: str = "{small: Qwen/Qwen3-0.6B}",
    pools: tuple[str, ...] = (L40S,),
    traffic: str = CHAT,
    rest: str = "objective: minimise cost",
) -> str:
    """A spec in YAML; parts that are left out are the smallest useful ones."""
    listed = "".join(f"    - {pool}\n" for pool in pools)
    return f"name: tiny\nmodels: {models}\nhardware:\n  pools:\n{listed}traffic:\n{traffic}{rest}\n"


def spec_of(**parts: object) -> DeploymentSpec:
    return parse_deployment(text_of(**parts)).spec  # type: ignore[arg-type]


def plan_of(*, seed: int = 0, **parts: object) -> Plan:
    return make_plan(spec_of(**parts), Path(), seed=seed, version="test")


def problem_of(**parts: object) -> Problem:
    return pose(spec_of(**parts), Path())


def planned(text: str, folder: Path) -> Plan:
    """The plan of a spec file with this text."""
    (folder / "spec.yaml").write_text(text)
    return make_plan(load_deployment(folder / "spec.yaml"), folder)


def night(window: str, prompt_tokens: int) -> str:
    """A traffic class of the small model in a window of the day."""
    return f"""\
  - name: night
    model: small
    arrivals: 2/s
    window: {window}
    prompt_tokens: {prompt_tokens}
    output_tokens: 60
    slo: {{e2e: {{p90: 20s}}}}
"""


def declared(*traffic: TrafficClass, context: int | None = None) -> DeploymentSpec:
    """A deployment of one model on one device, which nothing here looks at, with this traffic."""
    return DeploymentSpec(
        name="test",
        models={"m": ModelSpec(architecture="some/model", max_context_tokens=context)},
        hardware=HardwareSpec(pools=(PoolSpec(name="p", device="d", count=1, gpus_per_node=1),)),
        traffic=traffic,
    )
