"""What simulation makes of a chosen plan: served whole, without nodes, with spot machines gone, on fresh traffic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from threading import Event

from planner.candidates.pricing import Pricer, broken_limits, metrics_of
from planner.measured_rates import measured_notes
from planner.optimize.decision import served_by
from planner.optimize.fresh_seeds import FreshTest, Judge
from planner.optimize.objective_laws import SHARE_TOLERANCE
from planner.optimize.parts import Programme
from planner.optimize.whole_plan import WholePlan, admitted, nodes_in_words
from planner.simulate import FleetResult, Workload
from planner.simulate.together import together
from planner.throughput import short_loops, unsustained
from specs.deployment import SLO, HardwareSpec

# Share of the requests seen before TPOT was lost, from which on other limits may mend a plan: of 19 that came up in the
# examples and benchmarks they mended none. Of those that lost TTFT they mended some that lost it at once.
NEARLY = 0.6


@dataclass(frozen=True)
class Judgement:
    """What simulation makes of a whole plan; `broken` names the limits that it breaks, in words (none: it stands)."""

    whole: WholePlan
    result: FleetResult
    broken: tuple[str, ...]
    fresh: FreshTest | None
    served: Mapping[str, float]
    notes: tuple[str, ...]

    @property
    def near(self) -> bool:
        """Whether other limits may mend what the planned traffic refuted."""
        seen = float((self.result.group_index >= 0).mean())
        return self.fresh is None and (metrics_of(self.broken) != {"tpot"} or seen > NEARLY)


class _RefutedError(Exception):
    """What is simulated meanwhile is not wanted any more."""


@dataclass(frozen=True)
class Judging:
    """How plans of one problem are judged."""

    template: Programme
    pricer: Pricer
    hardware: HardwareSpec
    judge: Judge | None  # on fresh seeds; None: plans are not tested there
    progress: Callable[[str], None]

    def judgement(self, whole: WholePlan, served: Mapping[str, float]) -> Judgement:
        """The whole plan simulated: all of it, without its most loaded nodes, and on traffic that it has not seen."""
        classes = [name for name in self.template.classes if served.get(name, 1.0) > 0]
        workload = admitted(self.pricer.workload, served)
        slos = {name: slo for name, slo in self._promised(whole).items() if name in classes}
        judge = self._judge_of(whole, served)
        result, ahead = self._planned_and_fresh(whole, workload, judge)
        broken, _ = broken_limits(result, workload, slos)
        broken = broken or unsustained(result, workload, self.pricer.throughputs)
        broken = broken or short_loops(whole, workload, self.pricer.throughputs)
        notes = [
            f"{name}: {share:.1%} of its requests are let in; the pools carry no more" for name, share in served.items()
        ]
        notes += measured_notes(whole, self.pricer.measured)
        if not broken and self.template.survive:
            broken = self._broken_by_failures(whole, workload, served, notes)
        if not broken and any(pool.spot is not None for pool in self.hardware.pools):
            broken = self._broken_by_interruptions(whole, workload, notes)
        fresh = None if broken or judge is None else self._on_fresh_seeds(whole, judge, ahead)
        broken = fresh.broken if fresh is not None else broken
        return Judgement(whole, result, broken, fresh, served, tuple(notes))

    def _broken_by_failures(
        self, whole: WholePlan, workload: Workload, served: Mapping[str, float], notes: list[str]
    ) -> tuple[str, ...]:
        """What breaks when the most loaded nodes are gone.

        The programme spreads every column by itself; where all are placed together, more of one may share a node.
        """
        there = {pool.name: pool.availability for pool in self.template.pools}
        sets = whole.heaviest_nodes(self.template.survive)
        for nodes in sets:
            words = nodes_in_words(nodes)
            self.progress(f"simulating the plan without {words}")
            rest = whole.without(nodes)
            left = {route.request_class for route in rest.routes}
            if gone := [name for name in workload.classes if name not in left]:
                return tuple(f"{name}: nothing serves it without {words}" for name in gone)
            carried = served_by(rest.bought, workload.classes, there)
            short = {n: share for n, share in carried.items() if share < served.get(n, 1.0) - SHARE_TOLERANCE}
            if short:
                return tuple(f"{n}: replicas carry {share:.1%} of it without {words}" for n, share in short.items())
            broken, _ = broken_limits(self._run(rest, workload), workload, self._slos_of(rest, workload))
            if broken:
                return tuple(f"{text}, without {words}" for text in broken)
        if sets:
            notes.append(
                f"every promise held when simulated without {' or without '.join(map(nodes_in_words, sets))} "
                f"({self.template.survive} node{'s' if self.template.survive > 1 else ''} may fail)"
            )
        return ()

    def _broken_by_interruptions(self, whole: WholePlan, workload: Workload, notes: list[str]) -> tuple[str, ...]:
        """What breaks under interruptions of spot machines, drawn at their declared rate."""
        faults = whole.interruptions(workload.horizon_s)
        pools = [pool for pool in self.template.pools if pool.availability < 1.0]
        used = [pool for pool in pools if any(item.column.family.gpus_in(pool.name) for item in whole.bought)]
        notes += [
            f"{pool.name}: spot replicas count for the {pool.availability:.1%} of the time that they are there"
            for pool in used
        ]
        if not faults:
            return ()
        self.progress("simulating the plan with interruptions")
        result = whole.simulate(workload, self._slos_of(whole, workload), faults)
        self.pricer.simulations += 1
        broken, _ = broken_limits(result, workload, self._slos_of(whole, workload))
        if not broken:
            notes.append(f"every promise held when simulated with {len(faults)} drawn interruptions of spot replicas")
        return tuple(f"{text}, with spot machines interrupted" for text in broken)

    def _promised(self, whole: WholePlan) -> dict[str, SLO]:
        """The promises that simulation is asked about: not those of classes whose prices were measured."""
        return {name: slo for name, slo in self.pricer.slos.items() if name not in whole.measured}

    def _slos_of(self, whole: WholePlan, workload: Workload) -> dict[str, SLO]:
        return {name: slo for name, slo in self._promised(whole).items() if name in workload.classes}

    def _judge_of(self, whole: WholePlan, served: Mapping[str, float]) -> Judge | None:
        """The judge on fresh seeds of what is let in, but for classes whose prices were measured."""
        if self.judge is None:
            return None
        judge = self.judge if not served else self._admitting(self.judge, served)
        return replace(judge, slos=self._promised(whole)) if whole.measured else judge

    def _planned_and_fresh(
        self, whole: WholePlan, workload: Workload, judge: Judge | None
    ) -> tuple[FleetResult, FleetResult | None]:
        """The plan on the planned traffic and, at the same time, on that of the first fresh seed.

        The second one is stopped when the first one refutes the plan: None then, and where more is asked before it.
        """
        unseen = judge.workload(judge.seed + 1) if type(judge) is Judge else None
        spot = any(pool.spot is not None for pool in self.hardware.pools)
        if unseen is None or spot or self.template.survive:
            return self._run(whole, workload), None
        refuted = Event()

        def planned() -> FleetResult:
            result = self._run(whole, workload)
            if result.refuted_early is not None:
                refuted.set()
            return result

        def stop(share: float) -> None:
            if refuted.is_set():
                raise _RefutedError

        def fresh() -> FleetResult | None:
            try:
                stop(0.0)
                return whole.simulate(unseen, None, progress=stop)
            except _RefutedError:
                return None

        result, ahead = together((planned, fresh))
        assert result is not None
        return result, ahead

    def _on_fresh_seeds(self, whole: WholePlan, judge: Judge, ahead: FleetResult | None) -> FreshTest:
        """`ahead`: what the first seed made of the plan, where that is known."""
        self.progress("simulating the plan on fresh seeds")
        first = None if ahead is None else judge.workload(judge.seed + 1)

        def simulate(workload: Workload) -> FleetResult:
            return ahead if ahead is not None and workload is first else whole.simulate(workload, None)

        test = judge(simulate)
        self.pricer.simulations += test.simulations
        return test

    def _admitting(self, judge: Judge, served: Mapping[str, float]) -> Judge:
        """The judge of a plan that lets a share of the requests in."""

        def draw(seed: int) -> Workload | None:
            drawn = judge.draw(seed)
            return None if drawn is None else admitted(drawn, served)

        slos = {name: slo for name, slo in judge.slos.items() if served.get(name, 1.0) > 0}
        return replace(judge, draw=draw, slos=slos, drawn={})

    def _run(self, whole: WholePlan, workload: Workload) -> FleetResult:
        self.pricer.simulations += 1
        return whole.simulate(workload, self._slos_of(whole, workload))
