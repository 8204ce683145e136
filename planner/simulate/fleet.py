"""A fleet under a workload: served by the compiled simulator, or by the oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from planner.simulate import native
from planner.simulate.conditions import Conditions
from planner.simulate.faults import Fault
from planner.simulate.links import Link
from planner.simulate.model import FleetGroup, Workload
from planner.simulate.result import FleetResult
from specs.deployment import SLO
from specs.plan import Route, RouterName

MAX_EVENTS = 1_000_000_000  # seconds to hours of the compiled simulator: a run that needs more is not what was meant
MAX_EVENTS_EXACT = 20_000_000  # some minutes of the oracle


def simulate_fleet(
    groups: Sequence[FleetGroup],
    routes: Sequence[Route],
    workload: Workload,
    *,
    router: RouterName = "least_outstanding",
    poll_s: float = 0.0,
    faults: Sequence[Fault] = (),
    links: Mapping[str, Link] | None = None,
    seed: int = 0,
    exact: bool = False,
    refute: Mapping[str, SLO] | None = None,
    max_events: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> FleetResult:
    """Serve `workload` on `groups`, from empty replicas until the last request is done.

    A class is split over groups by the shares of `routes` (largest deficit first); inside a group `router` chooses
    among the replicas that are up, by loads as of the last multiple of `poll_s` seconds (0: by what they are). A
    prefill group hands its requests over by one of the `links`. `seed`: of what routers and speculation draw. `exact`:
    step by step on the rules of `specs.service`; otherwise compiled, equal to that bit for bit, where there is a
    compiler and the numbers allow it. `refute`: objectives by class; the run ends as soon as one cannot hold any more.
    After `max_events` steps and requests sent again the run ends and says so; None: `MAX_EVENTS`, or what takes the
    oracle as long, `MAX_EVENTS_EXACT`. `progress` is told now and then which share of the requests has arrived. Raises
    `ValueError` on routes, handoffs, links, faults or a router that do not fit.
    """
    if not exact and native.unsupported(groups, workload, router=router) is None:
        return native.simulate(
            groups,
            routes,
            workload,
            router=router,
            poll_s=poll_s,
            faults=faults,
            links=links,
            seed=seed,
            refute=refute,
            max_events=MAX_EVENTS if max_events is None else max_events,
            progress=progress,
        )
    from planner.simulate.arrivals import OpenArrivals
    from planner.simulate.run import FleetRun  # the oracle and the rules that it steps by are seldom wanted

    run = FleetRun(
        groups,
        routes,
        workload,
        OpenArrivals(workload),
        Conditions(router, poll_s, tuple(faults), links or {}, seed),
        max_events=MAX_EVENTS_EXACT if max_events is None else max_events,
        refute=refute,
        progress=progress,
    )
    return run.result()
