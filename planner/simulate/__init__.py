"""Fleet simulation: the step-by-step oracle on the rules of service, and event jumps that equal it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from planner.simulate.closed_loop import ClosedLoop, simulate_closed_loop
from planner.simulate.faults import Fault
from planner.simulate.fleet import MAX_EVENTS, simulate_fleet
from planner.simulate.limits import Requirement, nearest_rank, requirements, slos_of, wilson_interval
from planner.simulate.links import Handoff, Link
from planner.simulate.model import FleetGroup, ReplicaModel, Workload
from planner.simulate.result import (
    REFUSALS,
    Attainment,
    FleetResult,
    GroupLoad,
    Miss,
    Verdict,
    attainment,
    meets,
)
from planner.simulate.traffic.declared import BUSIEST_S, LEAST_REQUESTS, declared_workload
from planner.simulate.traffic.declared_loop import DeclaredLoop, declared_closed_loop

if TYPE_CHECKING:
    from planner.simulate.answers.over_time import kv_over_time, queue_over_time
    from planner.simulate.answers.steady import Stability, percentile_interval, stability, warm_up
    from planner.simulate.answers.summary import result_summary
    from planner.simulate.answers.tenants import Fairness, fairness
    from planner.simulate.answers.timeline import chrome_trace

__all__ = [
    "BUSIEST_S",
    "LEAST_REQUESTS",
    "MAX_EVENTS",
    "REFUSALS",
    "Attainment",
    "ClosedLoop",
    "DeclaredLoop",
    "Fairness",
    "Fault",
    "FleetGroup",
    "FleetResult",
    "GroupLoad",
    "Handoff",
    "Link",
    "Miss",
    "ReplicaModel",
    "Requirement",
    "Stability",
    "Verdict",
    "Workload",
    "attainment",
    "chrome_trace",
    "declared_closed_loop",
    "declared_workload",
    "fairness",
    "kv_over_time",
    "meets",
    "nearest_rank",
    "percentile_interval",
    "queue_over_time",
    "requirements",
    "result_summary",
    "simulate_closed_loop",
    "simulate_fleet",
    "slos_of",
    "stability",
    "warm_up",
    "wilson_interval",
]

_ANSWERS = {  # what is asked of results; planning asks little of it, so each is loaded when it is first wanted
    "Fairness": "planner.simulate.answers.tenants",
    "Stability": "planner.simulate.answers.steady",
    "chrome_trace": "planner.simulate.answers.timeline",
    "fairness": "planner.simulate.answers.tenants",
    "kv_over_time": "planner.simulate.answers.over_time",
    "percentile_interval": "planner.simulate.answers.steady",
    "queue_over_time": "planner.simulate.answers.over_time",
    "result_summary": "planner.simulate.answers.summary",
    "stability": "planner.simulate.answers.steady",
    "warm_up": "planner.simulate.answers.steady",
}


def __getattr__(name: str) -> Any:
    if name not in _ANSWERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ANSWERS[name]), name)
