"""The price of a configuration: how much of a model's demand one replica carries within every SLO, by simulation.

The loads of a configuration form a ladder: multiples of the whole demand on the fewest replicas that could carry it,
then the demand itself, then more replicas up to what the pool holds, then smaller shares of the demand on the whole
pool. Without the multiples, a replica that carries thrice the demand would count for no more than one that just does,
and two small ones for twice as much. Each rung asks less of a replica than the
one above it; the price is the highest rung on which some limits (token budget, sequences) keep every SLO. A simulation
that refutes ends as soon as the refutation is certain.

Prices come from the busiest part of the window, long enough for percentiles to mean something; whole plans are then
judged on all of it. So prices are careful, and a plan may load its columns a little above them where the judge agrees.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from planner.candidates.disaggregated import priced_fleet
from planner.candidates.enumerate import TOKEN_BUDGETS, sequence_limits, widest_limits
from planner.candidates.family import Family, Variant
from planner.candidates.options import NEUTRAL
from planner.candidates.prefix_hits import most_cached
from planner.candidates.replica import tokens_per_sequence
from planner.cost.bound import LatencyFloors, WorkSums, role_floors, role_work_s
from planner.simulate import FleetResult, Miss, Requirement, Workload, meets, requirements, simulate_fleet
from planner.simulate.apart import only as only
from planner.throughput import Throughput, loop_of, loop_tokens_per_s, tokens_per_s
from specs.deployment import SLO, ModelChoices
from specs.plan import Limits, Route, RouterName

if TYPE_CHECKING:
    from planner.measured_rates import MeasuredRates

SHARES = tuple(round(0.95 - 0.05 * step, 2) for step in range(19))  # 0.95 .. 0.05
MULTIPLES = (4.0, 3.0, 2.5, 2.0, 1.75, 1.5, 1.25)  # the first is the most headroom that counts in a tie
LEAST_SAFE_BUDGET, MOST_SAFE_BUDGET = 256, 4096
FIRST_FACTOR = 1.2  # a screen is busier than the window; whole plans start this much above it and shrink
LEAST_SCREENED, MOST_SCREENED = 1000, 2000  # requests; a percentile rests on a hundred beyond it, a p99 on 20
MOST_FLOORS = 2_000  # requests of a class whose latencies without a queue are worked out, where prices are sampled
MOST_SAMPLED = 30_000  # requests of all classes of a model that a part of its fleet is simulated on
SAMPLE_RATIO, SAMPLE_RUNGS = 0.95, 59  # of the ladder of such a part, down to a twentieth of the optimistic load
BEYOND = 100
STAYS, MOST_STEADY = 4.0, 6000  # a screen lasts as long as so many requests stay, one after the other
WARMING = 5  # times as many where prompts share something: caches start empty
FAR_FROM_PASSING = 0.3  # share of the requests seen when a limit was already lost: other chunk sizes do not mend that
_THINNING_SEED = 20_504_19720


@dataclass(frozen=True, slots=True)
class Rung:
    """`replicas` replicas asked to carry `share` of the demand (above 1: a multiple of it)."""

    replicas: int
    share: float

    @property
    def per_replica(self) -> float:
        return self.share / self.replicas


@dataclass(frozen=True, slots=True)
class Trial:
    """One rung tried: `broken` names the limits that did not hold (empty: it passed), `seen` the share of requests."""

    variant: Variant
    rung: Rung
    classes: tuple[str, ...]
    broken: tuple[str, ...]
    metrics: frozenset[str]  # of the broken limits: ttft, tpot, e2e, utilisation
    seen: float  # share of the requests that had arrived when the run ended
    running_peak: int
    simulated: bool = True  # False: latency floors refute it, or there is nothing to refute

    @property
    def passed(self) -> bool:
        return not self.broken


@dataclass
class Bracket:
    """What is known of a family's price: the highest rung that passed and the lowest that failed, so far.

    Rungs count from the heaviest load (0) to the lightest. Between `failed` and `passed` nothing is known; the bracket
    is closed when they are neighbours, or when even the lightest rung failed.
    """

    family: Family
    classes: tuple[str, ...]
    load: float  # replicas that the demand keeps busy, at the least
    rungs: list[Rung]
    failed: int = -1
    passed: int | None = None
    variant: Variant | None = None  # limits that passed on `passed`
    failure: Trial | None = None  # on `failed`: what stood in the way of more
    simulated: bool = True  # what passed was simulated; False: there was nothing to refute
    factor: float = FIRST_FACTOR  # of the screened load: what refutations of whole plans have left
    measured: bool = False  # the price is a measured rate, which no simulation is asked about

    @property
    def key(self) -> str:
        return f"{self.family.key}|{'+'.join(self.classes)}"

    @property
    def closed(self) -> bool:
        return self.failed == len(self.rungs) - 1 or (self.passed is not None and self.passed == self.failed + 1)

    @property
    def upper(self) -> float:
        """Share of the demand that one replica may still turn out to carry."""
        if self.closed:
            return self.lower
        rung = self.rungs[self.failed + 1]
        optimistic = 1.0 / self.load if self.load > 0 else rung.per_replica
        return min(optimistic, rung.per_replica * self.factor) if self.failed >= 0 else optimistic

    def take_in(self) -> None:
        """Lower the factor to where it starts to count: no replica carries more than the utilisation law allows."""
        if self.passed is not None and self.load > 0:
            self.factor = min(self.factor, 1.0 / (self.load * self.rungs[self.passed].per_replica))

    @property
    def lower(self) -> float:
        """Share of the demand that one replica carries, simulated; 0 while nothing passed."""
        if self.passed is None:
            return 0.0
        share = self.rungs[self.passed].per_replica * self.factor
        return min(share, 1.0 / self.load) if self.load > 0 else share


@dataclass
class Pricer:
    """Prices families against the declared workload. Deterministic: same input, same simulations, same prices."""

    workload: Workload
    slos: dict[str, SLO]
    choices: dict[str, ModelChoices]
    simulations: int = 0
    # by role: share of the optimistic load at which the family priced last still kept its SLOs
    knees: dict[str, float] = field(default_factory=lambda: {"unified": 0.6, "prefill": 0.6, "decode": 0.4})
    first_factor: dict[str, float] = field(default_factory=dict)  # by model, of brackets opened from now on
    measured: MeasuredRates | None = None
    classes_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by model; empty: all of one model
    throughputs: Mapping[str, Throughput] = field(default_factory=dict)  # of the classes that state one
    router: RouterName = "least_outstanding"
    sampled: int | None = None  # replicas that stand for a model that needs many more; None: all are simulated
    _own: dict[tuple[str, ...], Workload] = field(default_factory=dict)  # by the classes that it holds
    _screens: dict[tuple[str, ...], Workload] = field(default_factory=dict)
    _few: dict[str, Workload] = field(default_factory=dict)  # some requests of a class
    _sums: dict[str, WorkSums] = field(default_factory=dict)  # by class
    _hits: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    _loads: dict[tuple[str, str], float] = field(default_factory=dict)
    _parts: dict[tuple[tuple[str, ...], float], Workload] = field(default_factory=dict)
    _variants: dict[tuple[str, int, int], Variant | None] = field(default_factory=dict)
    _trials: dict[tuple[str, Limits, Rung, tuple[str, ...]], Trial] = field(default_factory=dict)

    def load(self, family: Family, name: str) -> float:
        """Replicas of `family` that the demand of class `name` keeps busy, at the least (utilisation law)."""
        key = (family.key, name)
        if key not in self._loads:
            self._loads[key] = self._work_s(family, name) / self.own((name,)).horizon_s
        return self._loads[key]

    def measures(self, family: Family, classes: tuple[str, ...]) -> bool:
        """Whether measured rates say what a replica of `family` carries of `classes`."""
        if self.measured is None:
            return False
        parts = (self.own((name,)) for name in classes)
        return all(self.measured.covers(family, part.prompt_tokens, part.output_tokens) for part in parts)

    def _work_s(self, family: Family, name: str) -> float:
        part, options = self.own((name,)), family.options
        if self.measured is not None:
            seconds = self.measured.busy(family, part.prompt_tokens, part.output_tokens)
            if math.isfinite(seconds):
                return seconds
        if options == NEUTRAL and family.times.window_tokens is None:
            if name not in self._sums:
                self._sums[name] = WorkSums.of(part.prompt_tokens, part.output_tokens)
            return self._sums[name].seconds(family.times)
        return role_work_s(
            options.role,
            family.times,
            part.prompt_tokens,
            part.output_tokens,
            cached_tokens=self._cached(family, name, part),
            speculation=options.speculation,
        )

    def miss(self, family: Family, name: str) -> float:
        """Share of the requests of class `name` that break its decisive requirement on `family` even alone.

        Of two sides only one counts a request as late: the decode side, but for requirements on TTFT alone.
        """
        if name not in self.slos or self.measures(family, (name,)):
            return 0.0
        requirement = decisive(self.slos[name])
        if family.options.role == "prefill" and any(metric != "ttft" for metric, _ in requirement.thresholds):
            return 0.0
        return self._late(family, name, requirement)

    def _late(self, family: Family, name: str, requirement: Requirement) -> float:
        """Share of the requests of class `name` that break `requirement` on `family` without any queue."""
        floors = self.floors(family, name)
        by_metric = {"ttft": floors.ttft_s, "tpot": floors.tpot_s, "e2e": floors.e2e_s}
        late = np.zeros(len(floors.e2e_s), dtype=np.bool_)
        for metric, limit_s in requirement.thresholds:
            late |= by_metric[metric] > limit_s
        return float(late.mean())

    def floors(self, family: Family, name: str) -> LatencyFloors:
        """What requests of class `name` take on `family` without any queue, at the least; of some, where sampled."""
        part = self.own((name,))
        if self.sampled is not None and len(part) > MOST_FLOORS and not family.options.prefix_caching:
            if name not in self._few:
                chosen = np.zeros(len(part), np.bool_)
                chosen[:: -(-len(part) // MOST_FLOORS)] = True
                self._few[name] = part.select(chosen)
            part = self._few[name]
        return role_floors(
            family.options.role,
            family.times,
            part.prompt_tokens,
            part.output_tokens,
            cached_tokens=self._cached(family, name, part),
            speculation=family.options.speculation,
        )

    def _cached(self, family: Family, name: str, part: Workload) -> NDArray[np.int64] | None:
        """Prompt tokens of class `name`, request by request, that `family` never computes at the best."""
        if not family.options.prefix_caching:
            return None
        if name not in self._hits:
            self._hits[name] = most_cached(part)
        return self._hits[name]

    def part(self, classes: tuple[str, ...], share: float) -> Workload:
        """The screened requests of `classes`, thinned to `share`; one kept at some share is kept at every larger.

        Above 1, all of them, arriving `share` times as fast.
        """
        key = (classes, share)
        if key in self._parts:
            return self._parts[key]
        model = self._classes_with(classes[0])
        if self.sampled is not None and share < 1.0:
            thinned = self.thinned(self.own(model), classes, share)
            return busiest_part(thinned, self.sample(thinned))
        if model not in self._screens:
            own = self.own(model)
            self._screens[model] = busiest_part(own, max(self._screened() * len(model), self.steady(own)))
        part = self.thinned(self._screens[model], classes, share)
        if share > 1.0:
            part = part.faster(share)
        self._parts[key] = part
        return part

    def own(self, classes: tuple[str, ...]) -> Workload:
        """The requests of `classes`, of one model, and no other class."""
        if classes not in self._own:
            model = self._classes_with(classes[0])
            whole = self.workload if classes == model else self.own(model)
            self._own[classes] = only(whole, classes)
        return self._own[classes]

    def _classes_with(self, name: str) -> tuple[str, ...]:
        """All classes of the model that class `name` belongs to."""
        return next((own for own in self.classes_of.values() if name in own), self.workload.classes)

    def thinned(self, whole: Workload, classes: tuple[str, ...], share: float) -> Workload:
        """The requests of `classes`, or below 1 a share of them; one kept at some share is kept at every larger."""
        if classes == whole.classes:
            return whole.select(_draws(whole) < share) if share < 1.0 else whole
        mask = np.isin(whole.class_index, [whole.classes.index(name) for name in classes])
        return whole.select(mask & (_draws(whole) < share) if share < 1.0 else mask)

    def sample(self, workload: Workload) -> int:
        """Requests that a part of a large fleet is simulated on: enough for percentiles, and to fill its replicas."""
        least = max(self._screened() * len(workload.classes), self.steady(workload, MOST_SAMPLED))
        return min(least, MOST_SAMPLED)

    def steady(self, workload: Workload, most: int = MOST_STEADY) -> int:
        """Requests in as long a time as it takes until as many are in service as ever will be, if TPOT is as promised.

        From empty replicas on that takes as long as a request stays; a shorter screen prices replicas that never fill.
        """
        limits = self._tpot_limits(workload.classes)
        if not limits or not len(workload):
            return 0
        stays_s = max(limits) * float(workload.output_tokens.mean())
        return min(most, int(STAYS * stays_s * len(workload) / workload.horizon_s))

    def _screened(self) -> int:
        """Requests that prices rest on: the more, the closer to one the largest share that a class promises."""
        shares = (requirement.share for slo in self.slos.values() for requirement in requirements(slo))
        rest = 1.0 - max(shares, default=0.0)
        return int(min(MOST_SCREENED, max(LEAST_SCREENED, BEYOND / rest if rest > 0 else MOST_SCREENED)))

    def bracket(self, family: Family, classes: tuple[str, ...]) -> Bracket:
        """The price of `family` for `classes`, nothing simulated yet."""
        load = sum(self.load(family, name) for name in classes)
        if self.measures(family, classes):
            variant = self.first_limits(family, classes)
            rungs = [Rung(family.most_replicas, family.most_replicas / load)] if variant is not None else []
            passed = 0 if rungs else None
            known = Bracket(family, classes, load, rungs, passed=passed, variant=variant, simulated=False, factor=1.0)
            known.measured = True
            return known
        rungs = self._ladder(family, load) if self.first_limits(family, classes) is not None else []
        return Bracket(family, classes, load, rungs, factor=self.first_factor.get(family.model, FIRST_FACTOR))

    def _ladder(self, family: Family, load: float) -> list[Rung]:
        if self.sampled is None or load < 2 * self.sampled:
            return ladder(load, family.most_replicas)
        replicas = min(self.sampled, family.most_replicas)
        return [Rung(replicas, replicas / load * SAMPLE_RATIO**step) for step in range(SAMPLE_RUNGS)]

    def narrow(self, bracket: Bracket) -> None:
        """Try one rung between what failed and what passed.

        The first is the rung above the one where the family priced last ended, which probably fails: one trial then
        says nearly as much as the price itself.
        """
        first = bracket.variant or self.first_limits(bracket.family, bracket.classes)
        if bracket.closed or first is None:
            return
        last = len(bracket.rungs) - 1
        if bracket.passed is not None:
            index = (bracket.failed + bracket.passed) // 2
        elif broken := self.hopeless(bracket.family, bracket.classes):
            bracket.failed = last
            bracket.failure = Trial(
                first, bracket.rungs[last], bracket.classes, broken, metrics_of(broken), 0.0, 0, simulated=False
            )
            return
        else:
            knee = self.knees[bracket.family.options.role]
            likely = next((i for i, rung in enumerate(bracket.rungs) if rung.per_replica * bracket.load <= knee), last)
            index = likely - 1 if bracket.failed < likely - 1 else bracket.failed + 1
            if bracket.failed > likely + 2:  # far below the estimate: widen the stride
                index = min(last, 2 * bracket.failed - likely)
        trial = self.trial(first, bracket.rungs[index], bracket.classes)
        if not trial.passed and trial.seen > FAR_FROM_PASSING:
            trial = self._other_limits(bracket.family, trial) or trial
        if trial.passed:
            bracket.passed, bracket.variant, bracket.simulated = index, trial.variant, trial.simulated
            self.knees[bracket.family.options.role] = bracket.rungs[index].per_replica * bracket.load
        else:
            bracket.failed, bracket.failure = index, trial

    def first_limits(self, family: Family, classes: tuple[str, ...]) -> Variant | None:
        """The likeliest limits that boot.

        The token budget is, where a class limits TPOT, the largest with which no step can last longer than that limit:
        then chunks of prompts never break TPOT, whatever arrives. Otherwise the first of the usual ones.
        """
        choices = self.choices[family.model]
        budgets = choices.max_num_batched_tokens or (self.safe_budget(family, classes), *TOKEN_BUDGETS)
        for sequences in sequence_limits(choices):
            for budget in budgets:
                variant = self.variant(family, sequences, budget) if budget else None
                if variant is not None:
                    return variant
        return None

    def safe_budget(self, family: Family, classes: tuple[str, ...]) -> int:
        """The largest token budget, in steps of 64, whose full step keeps the TPOT limits of `classes`; 0 without one.

        At least `LEAST_SAFE_BUDGET`, at most `MOST_SAFE_BUDGET`.
        """
        limits = self._tpot_limits(classes)
        if not limits or family.options.role != "unified":  # apart, prompts hold up no tokens
            return 0
        # what a step takes beside its tokens: some context to read, rows to sample
        room = 0.95 * min(limits) - family.times.sampled_s[min(64, len(family.times.sampled_s) - 1)]
        tokens = (bisect.bisect_right(family.times.tokens_s, room) - 1) // family.layout.attention_data_parallel
        return min(MOST_SAFE_BUDGET, self._most_budget(family), max(LEAST_SAFE_BUDGET, tokens // 64 * 64))

    def _tpot_limits(self, classes: Iterable[str]) -> list[float]:
        return [
            limit_s
            for name in classes
            if name in self.slos
            for requirement in requirements(self.slos[name])
            for metric, limit_s in requirement.thresholds
            if metric == "tpot"
        ]

    def hopeless(self, family: Family, classes: tuple[str, ...]) -> tuple[str, ...]:
        """The limits that more requests than may do so break even alone, in words: no load keeps them."""
        found = tuple(
            f"{name}: {requirement.text} (met by at most {1 - late:.1%})"
            for name in classes
            if name in self.slos
            for requirement in requirements(self.slos[name])
            if (late := self._late(family, name, requirement)) > 1.0 - requirement.share
        )
        loops = [name for name in classes if name in self.throughputs and family.options.role == "unified"]
        return (*found, *(text for name in loops for text in self._slow_loop(family, name)))

    def _slow_loop(self, family: Family, name: str) -> tuple[str, ...]:
        """Little's law: more clients than there are would be in flight, even if no request waited for another."""
        clients, part = self.throughputs[name].clients, self.own((name,))
        needed = len(part) / part.horizon_s * float(self.floors(family, name).e2e_s.mean())
        if clients is None or needed <= clients:
            return ()
        return (f"{name}: {clients} requests in flight (needs {needed:,.0f} even without any queue)",)

    def _other_limits(self, family: Family, failure: Trial) -> Trial | None:
        """A passing trial on the failed trial's rung under other limits, or None.

        Smaller chunks can help TPOT, larger ones TTFT. A sequence limit above the peak of running sequences never
        acted; fewer sequences can only help TPOT, more can only help TTFT.
        """
        choices, tried = self.choices[family.model], failure.variant.limits
        budget, sequences = tried.max_num_batched_tokens, tried.max_num_seqs
        if family.options.role == "decode":  # prompts take no part: only the seats decide
            options = [(n, budget) for n in sequence_limits(choices) if n < min(sequences, failure.running_peak)][:1]
        elif "tpot" in failure.metrics:
            options = [(sequences, budget // 2)]
            options += [(n, budget) for n in sequence_limits(choices) if n < min(sequences, failure.running_peak)][:1]
        else:
            options = [(sequences, 2 * budget), (sequences, 4 * budget)]
            if failure.running_peak >= sequences:
                options += [(n, budget) for n in sequence_limits(choices) if n > sequences][:1]
        pinned = choices.max_num_batched_tokens
        if pinned is not None:
            options = [option for option in options if option[1] == budget]
            options += [(sequences, other) for other in pinned if other != budget]
        closest = None
        for sequences, budget in options:
            if not sequences <= budget <= self._most_budget(family):
                continue
            variant = self.variant(family, sequences, budget)
            if variant is None:
                continue
            trial = self.trial(variant, failure.rung, failure.classes)
            if trial.passed:
                return trial
            if closest is not None and trial.seen <= closest.seen:
                break  # further in this direction is no better
            closest = trial
        return None

    def variant(self, family: Family, max_num_seqs: int, budget: int) -> Variant | None:
        """The family under these limits, or None where its memory or a pinned budget does not hold them."""
        pinned = self.choices[family.model].max_num_batched_tokens
        least = max_num_seqs * tokens_per_sequence(family.options.speculation)
        if (pinned is not None and budget < least) or max(budget, least) > self._most_budget(family):
            return None
        key = (family.key, max_num_seqs, budget)
        if key not in self._variants:
            limits = Limits(
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max(budget, least),
                max_model_len=family.max_model_len,
            )
            cache = family.cache(limits)
            self._variants[key] = Variant(family, limits, cache) if cache is not None else None
        return self._variants[key]

    def _most_budget(self, family: Family) -> int:
        """The largest token budget of a rank that the family's step times go to."""
        layout = family.layout
        tokens = widest_limits(self.choices[family.model], layout, family.options.speculation)[1]
        return tokens // layout.attention_data_parallel

    def trial(self, variant: Variant, rung: Rung, classes: tuple[str, ...]) -> Trial:
        """Simulate one group of equal replicas under its rung's share of `classes`; the same trial only once.

        Where none of them states an objective there is nothing to refute, and the rung passes unsimulated.
        """
        key = (variant.family.key, variant.limits, rung, classes)
        if key not in self._trials:
            self._trials[key] = self._tried(variant, rung, classes)
        return replace(self._trials[key], variant=variant)

    def _tried(self, variant: Variant, rung: Rung, classes: tuple[str, ...]) -> Trial:
        slos = {name: slo for name, slo in self.slos.items() if name in classes}
        if not slos and len(classes) == 1 and classes[0] in self.throughputs:
            return self._loop_trial(variant, rung, classes[0])
        if not slos:
            return Trial(variant, rung, classes, (), frozenset(), 1.0, 0, simulated=False)
        self.simulations += 1
        fleet = priced_fleet(variant, rung.replicas, self.part(classes, rung.share))
        workload = fleet.workload
        routes = tuple(Route(request_class=name, group=fleet.entry, share=1.0) for name in workload.classes)
        result = simulate_fleet(fleet.groups, routes, workload, router=self.router, links=fleet.links, refute=slos)
        broken, metrics = broken_limits(result, workload, slos)
        return Trial(
            variant=variant,
            rung=rung,
            classes=classes,
            broken=broken,
            metrics=metrics,
            seen=float((result.group_index >= 0).mean()) if len(workload) else 1.0,
            running_peak=result.groups[fleet.index].running_peak,
        )

    def _loop_trial(self, variant: Variant, rung: Rung, name: str) -> Trial:
        """A closed loop that keeps the replicas full, against the tokens/s that the rung asks for."""
        if variant.family.options.role != "unified":
            apart = (f"{name}: a throughput alone is served by replicas that do both prefill and decode",)
            return Trial(variant, rung, (name,), apart, frozenset(), 0.0, 0, simulated=False)
        self.simulations += 1
        own, part = self.own((name,)), self.part((name,), min(1.0, rung.share))
        seats = rung.replicas * variant.replica.limits.max_num_seqs
        clients, there = loop_of(self.throughputs[name], rung.share, seats)
        found = there * loop_tokens_per_s(
            variant.replica, rung.replicas, clients, part.prompt_tokens, part.output_tokens
        )
        wanted = tokens_per_s(own, name) * rung.share
        broken = () if found >= wanted else (f"{name}: throughput >= {wanted:,.0f} tokens/s (reaches {found:,.0f})",)
        peak = math.ceil(clients / rung.replicas)
        return Trial(variant, rung, (name,), broken, frozenset(), 1.0, peak)

    def again(self, slos: dict[str, SLO], choices: dict[str, ModelChoices]) -> Pricer:
        """A pricer of the same traffic that has simulated nothing yet: what promises do not touch is taken over."""
        other = replace(self, knees=dict(self.knees), slos=slos, choices=choices, simulations=0, first_factor={})
        if slos == self.slos:
            other.first_factor = dict(self.first_factor)
        elif other._screened() != self._screened():
            other._screens, other._parts = {}, {}
        if choices != self.choices:
            other._variants = {}
        if slos != self.slos:
            other._trials = {}
        return other


def _draws(workload: Workload) -> NDArray[np.float64]:
    """A number from 0 to 1 for each request, by which it is kept; turns of a conversation stay together."""
    draws = np.random.default_rng(_THINNING_SEED).random(len(workload))
    if workload.session is None:
        return draws
    _, first, conversation = np.unique(workload.session, return_index=True, return_inverse=True)
    together: NDArray[np.float64] = draws[first[conversation]]
    return together


def broken_limits(
    result: FleetResult, workload: Workload, slos: Mapping[str, SLO]
) -> tuple[tuple[str, ...], frozenset[str]]:
    """The limits that a run broke, in words, and the metrics that they are about."""
    verdict = meets(result, workload, slos)
    broken = [_in_words(miss) for miss in verdict.misses if verdict.refuted_early is None]
    if verdict.refuted_early is not None:
        broken.append(verdict.refuted_early)
    if verdict.event_bound_hit:
        broken.append("the bound on simulated events was reached")
    return tuple(broken), metrics_of(broken)


def metrics_of(broken: Iterable[str]) -> frozenset[str]:
    """The metrics that broken limits, in words, are about."""
    text = " ".join(broken).lower()
    return frozenset(word for word in ("ttft", "tpot", "e2e") if word in text)


def decisive(slo: SLO) -> Requirement:
    """The requirement that optimistic families are held to: the one on TPOT, which most often rules devices out."""
    found = requirements(slo)
    return next((r for r in found if any(metric == "tpot" for metric, _ in r.thresholds)), found[0])


def busiest_part(workload: Workload, requests: int) -> Workload:
    """The stretch that holds about `requests` requests and the most tokens; re-based to 0.

    The whole workload where it is not at least twice as long.
    """
    if workload.prefixes is not None:
        requests *= WARMING
    if len(workload) < 2 * requests:
        return workload
    seconds = workload.horizon_s * requests / len(workload)
    arrival_s = workload.arrival_s
    tokens = np.concatenate([[0], np.cumsum(workload.prompt_tokens + workload.output_tokens)])
    ends = np.searchsorted(arrival_s, arrival_s + seconds)
    starts = np.arange(len(arrival_s))
    starts = starts[arrival_s <= workload.horizon_s - seconds]
    first = int(starts[np.argmax(tokens[ends[starts]] - tokens[starts])])
    inside = (starts_at := np.arange(len(arrival_s))) >= first
    part = workload.select(inside & (starts_at < ends[first]))
    return part.moved(part.arrival_s - arrival_s[first], seconds)


def ladder(load: float, most_replicas: int) -> list[Rung]:
    """Rungs from the heaviest load a replica could bear to the lightest; `load` in replicas kept busy."""
    fewest = max(1, math.ceil(load - 1e-9))
    most_share = most_replicas / load if load > 0 else 1.0
    above = [Rung(fewest, multiple) for multiple in MULTIPLES if fewest <= most_replicas and multiple * load <= fewest]
    rungs = [Rung(replicas, 1.0) for replicas in range(fewest, most_replicas + 1)]
    return above + rungs + [Rung(most_replicas, share) for share in SHARES if share <= most_share]


def _in_words(miss: Miss) -> str:
    return f"{miss.request_class}: {miss.text} (met by {miss.attained:.1%})"
