"""Tiny specs for tests of the planner: small models, low rates, so that a plan takes a fraction of a second."""

from __future__ import annotations

from pathlib import Path

from planner.plan import make_plan
from planner.problem import Problem, pose
from specs.deployment import DeploymentSpec, parse_deployment
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
