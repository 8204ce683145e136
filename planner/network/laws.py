"""Laws of the network, for the re-check: cables carry what the plan sends, and nothing that is sent is left out."""

from __future__ import annotations

import math
from collections import defaultdict

from planner.network.flows import flows
from planner.optimize.laws import check
from specs.errors import InputError
from specs.plan import Check, Plan

FULL = 0.9  # share of a cable that long messages reach


def cables_carry_the_plan(plan: Plan) -> list[Check]:
    """One row a cable, and one a node that sends."""
    found = [
        check(
            f"network: {load.between[0]} to {load.between[1]} carries its bytes per second",
            load.bytes_per_s,
            "<=",
            FULL * load.capacity_bytes_per_s,
        )
        for load in plan.network
    ]
    sent: dict[str, float] = defaultdict(float)
    try:
        sending = flows(plan)
    except (InputError, KeyError):  # groups, predictions or configs that other laws find broken
        return [*found, check("network: what nodes send is known", math.inf, "<=", 0.0)]
    for flow in sending:
        sent[flow.source] += flow.bytes_per_s
    leaving: dict[str, float] = defaultdict(float)
    for load in plan.network:
        leaving[load.between[0]] += load.bytes_per_s
    for node, rate in sorted(sent.items()):
        found.append(check(f"network: what {node} sends leaves it by its cables", leaving[node], ">=", rate))
    return found
