"""Fleet simulation: the step-by-step oracle on the rules of service, and event jumps that equal it."""

from planner.simulate.declared import BUSIEST_S, LEAST_REQUESTS, declared_workload
from planner.simulate.fleet import MAX_EVENTS, simulate_fleet
from planner.simulate.limits import Requirement, nearest_rank, requirements, slos_of, wilson_interval
from planner.simulate.model import FleetGroup, ReplicaModel, Workload
from planner.simulate.result import (
    Attainment,
    FleetResult,
    GroupLoad,
    Miss,
    Verdict,
    attainment,
    meets,
    result_summary,
)

__all__ = [
    "BUSIEST_S",
    "LEAST_REQUESTS",
    "MAX_EVENTS",
    "Attainment",
    "FleetGroup",
    "FleetResult",
    "GroupLoad",
    "Miss",
    "ReplicaModel",
    "Requirement",
    "Verdict",
    "Workload",
    "attainment",
    "declared_workload",
    "meets",
    "nearest_rank",
    "requirements",
    "result_summary",
    "simulate_fleet",
    "slos_of",
    "wilson_interval",
]
