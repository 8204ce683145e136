"""The `Plan` document of a stated deployment: groups by their own names, every law checked, what is broken said."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from planner.assemble import certified, draft
from planner.network.arrange import arranged
from planner.problem import Problem
from planner.stated.deployment import Standing, served_worth
from planner.stated.naming import names_of, renamed, versions_of, with_names
from planner.stated.slack import Slack
from specs.errors import NoPlanError
from specs.plan import Plan


@dataclass(frozen=True)
class StatedPlan:
    """The document; `broken`: promises and limits that do not hold, in words."""

    plan: Plan
    broken: tuple[str, ...]
    slack: Slack
    standing: Standing

    @property
    def mends(self) -> tuple[str, ...]:
        """What would mend what is broken, as far as that was simulated."""
        if not self.broken or self.slack.multiple is None or self.slack.multiple >= 1.0:
            return ()
        return (f"traffic: {self.slack.multiple:.2f} times as much",)


def document_of(stated: Standing, slack: Slack, version: str) -> StatedPlan:
    """The deployment as a plan that other commands read."""
    problem = replace(stated.problem, workload=stated.problem.declared)  # what is predicted is simulated already
    names = names_of(problem.stated)
    plan = renamed(draft(problem, stated.master, stated.decision, version), names, versions_of(problem.stated))
    broken = [with_names(text, names) for text in stated.broken]
    try:
        fixed = any(item.group.nodes is not None for item in problem.stated)
        plan = arranged(plan, problem.spec.hardware, fixed=fixed)
    except NoPlanError as error:
        broken.append(error.message)
    notes = (slack.text, *left_out(problem), *_shared_out(plan), *plan.predictions.notes)
    loads = tuple(
        load.model_copy(update={"running_mean": running_mean(stated, index)})
        for index, load in enumerate(plan.predictions.groups)
    )
    predictions = plan.predictions.model_copy(update={"notes": notes, "groups": loads})
    worth = served_worth(problem, stated.master, stated.decision.result)
    certificate = plan.certificate.model_copy(update={"worth": worth})
    plan = certified(plan.model_copy(update={"predictions": predictions, "certificate": certificate}))
    return StatedPlan(plan, (*broken, *broken_laws(plan, told=bool(broken))), slack, stated)


def broken_laws(plan: Plan, *, told: bool) -> tuple[str, ...]:
    """Laws of the re-check that do not hold; `told`: without those that the simulation has judged in words."""
    words = {"<=": "at most ", ">=": "at least ", "==": ""}
    return tuple(
        f"{check.law}: {check.left:,.6g} of {words[check.relation]}{check.right:,.6g}"
        for check in plan.certificate.checks
        if not check.holds and not (told and _is_told(check.law))
    )


def running_mean(stated: Standing, index: int) -> float:
    """Sequences in service on one replica, on average over the window (Little's law)."""
    result, workload = stated.decision.result, stated.problem.declared
    item, own = stated.decision.bought[index], result.had(index)
    arrivals = result.arrivals_s(workload)
    first, last = arrivals + result.ttft_s, arrivals + result.e2e_s
    starts = first if item.role == "decode" else result.starts_s(workload)
    ends = first if item.role == "prefill" else last
    inside = np.minimum(np.nan_to_num(ends[own], nan=workload.horizon_s), workload.horizon_s) - starts[own]
    return float(np.nansum(np.maximum(inside, 0.0))) / workload.horizon_s / item.replicas


def _is_told(law: str) -> bool:
    """Whether the law is about promises to requests, which the simulation has judged in words."""
    return "(simulated" in law or "fresh seeds" in law or law.startswith("network:")


def left_out(problem: Problem) -> list[str]:
    """What stated groups leave to their engines, and what those do then; what of the spec has no part in them."""
    notes = []
    if problem.spec.measured is not None:
        notes.append("measured rates have no part in stated groups: they are simulated by the cost model")
    for item in problem.stated:
        limits = item.variant.limits
        left = [
            f"{name} {getattr(limits, name):,}"
            for name in ("max_num_seqs", "max_num_batched_tokens")
            if getattr(item.group, name) is None
        ]
        if left:
            are = "are" if len(left) > 1 else "is"
            notes.append(f"{item.group.name}: {' and '.join(left)} {are} not stated: what {item.group.engine} takes")
    return notes


def _shared_out(plan: Plan) -> list[str]:
    """Classes whose requests go to several groups by their load."""
    notes = []
    for traffic in plan.spec["traffic"]:
        name, own = traffic["name"], [route for route in plan.routes if route.request_class == traffic["name"]]
        groups = plan.spec["choices"]["models"][traffic["model"]]["groups"]
        stated = {group["name"] for group in groups if (group["serves"] or {}).get(name)}
        by_load = [route for route in own if route.group not in stated]
        if len(by_load) > 1:
            shares = ", ".join(f"{route.share:.1%} to {route.group}" for route in by_load)
            notes.append(f"{name}: {shares}, by the capacity that other requests leave (utilisation law)")
    return notes
