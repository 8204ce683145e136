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
from dataclasses import dataclass, field

import numpy as np

from planner.candidates.enumerate import MOST_BUDGET, TOKEN_BUDGETS, sequence_limits
from planner.candidates.family import Family, Variant
from planner.cost.bound import latency_floors, optimistic_work_s
from planner.simulate import FleetGroup, FleetResult, Miss, Requirement, Workload, meets, requirements, simulate_fleet
from specs.deployment import SLO, ModelChoices
from specs.plan import Limits, Route

SHARES = tuple(round(0.95 - 0.05 * step, 2) for step in range(19))  # 0.95 .. 0.05
MULTIPLES = (4.0, 3.0, 2.5, 2.0, 1.75, 1.5, 1.25)  # the first is the most headroom that counts in a tie
LEAST_SAFE_BUDGET, MOST_SAFE_BUDGET = 256, 4096
FIRST_FACTOR = 1.2  # a screen is busier than the window; whole plans start this much above it and shrink
LEAST_SCREENED, MOST_SCREENED = 1000, 2000  # requests; a percentile rests on a hundred beyond it, a p99 on 20
BEYOND = 100
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
    knee: float = 0.6  # share of the optimistic load at which the family priced last still kept its SLOs
    first_factor: dict[str, float] = field(default_factory=dict)  # by model, of brackets opened from now on
    _screen: Workload | None = None
    _loads: dict[tuple[str, str], float] = field(default_factory=dict)
    _parts: dict[tuple[tuple[str, ...], float], Workload] = field(default_factory=dict)
    _variants: dict[tuple[str, int, int], Variant | None] = field(default_factory=dict)

    def load(self, family: Family, name: str) -> float:
        """Replicas of `family` that the demand of class `name` keeps busy, at the least (utilisation law)."""
        key = (family.key, name)
        if key not in self._loads:
            part = self.workload.select(self.workload.of_class(name))
            work_s = optimistic_work_s(family.times, part.prompt_tokens, part.output_tokens)
            self._loads[key] = work_s / part.horizon_s
        return self._loads[key]

    def miss(self, family: Family, name: str) -> float:
        """Share of the requests of class `name` that break its decisive requirement on `family` even alone."""
        return self._late(family, name, decisive(self.slos[name])) if name in self.slos else 0.0

    def _late(self, family: Family, name: str, requirement: Requirement) -> float:
        """Share of the requests of class `name` that break `requirement` on `family` without any queue."""
        part = self.workload.select(self.workload.of_class(name))
        floors = latency_floors(family.times, part.prompt_tokens, part.output_tokens)
        by_metric = {"ttft": floors.ttft_s, "tpot": floors.tpot_s, "e2e": floors.e2e_s}
        late = np.zeros(len(part), dtype=np.bool_)
        for metric, limit_s in requirement.thresholds:
            late |= by_metric[metric] > limit_s
        return float(late.mean())

    def part(self, classes: tuple[str, ...], share: float) -> Workload:
        """The screened requests of `classes`, thinned to `share`; one kept at some share is kept at every larger.

        Above 1, all of them, arriving `share` times as fast.
        """
        key = (classes, share)
        if key not in self._parts:
            if self._screen is None:
                self._screen = busiest_part(self.workload, self._screened())
            whole = self._screen
            mask = np.isin(whole.class_index, [whole.classes.index(name) for name in classes])
            if share < 1.0:
                mask &= np.random.default_rng(_THINNING_SEED).random(len(mask)) < share
            part = whole.select(mask)
            if share > 1.0:
                part = part.moved(part.arrival_s / share, part.horizon_s / share)
            self._parts[key] = part
        return self._parts[key]

    def _screened(self) -> int:
        """Requests that prices rest on: the more, the closer to one the largest share that a class promises."""
        shares = (requirement.share for slo in self.slos.values() for requirement in requirements(slo))
        rest = 1.0 - max(shares, default=0.0)
        return int(min(MOST_SCREENED, max(LEAST_SCREENED, BEYOND / rest if rest > 0 else MOST_SCREENED)))

    def bracket(self, family: Family, classes: tuple[str, ...]) -> Bracket:
        """The price of `family` for `classes`, nothing simulated yet."""
        load = sum(self.load(family, name) for name in classes)
        rungs = ladder(load, family.most_replicas) if self.first_limits(family, classes) is not None else []
        return Bracket(family, classes, load, rungs, factor=self.first_factor.get(family.model, FIRST_FACTOR))

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
                first, bracket.rungs[last], bracket.classes, broken, _metrics_of(broken), 0.0, 0, simulated=False
            )
            return
        else:
            likely = next(
                (i for i, rung in enumerate(bracket.rungs) if rung.per_replica * bracket.load <= self.knee), last
            )
            index = likely - 1 if bracket.failed < likely - 1 else bracket.failed + 1
            if bracket.failed > likely + 2:  # far below the estimate: widen the stride
                index = min(last, 2 * bracket.failed - likely)
        trial = self.trial(first, bracket.rungs[index], bracket.classes)
        if not trial.passed and trial.seen > FAR_FROM_PASSING:
            trial = self._other_limits(bracket.family, trial) or trial
        if trial.passed:
            bracket.passed, bracket.variant, bracket.simulated = index, trial.variant, trial.simulated
            self.knee = bracket.rungs[index].per_replica * bracket.load
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
        if not limits:
            return 0
        # what a step takes beside its tokens: some context to read, rows to sample
        room = 0.95 * min(limits) - family.times.sampled_s[min(64, len(family.times.sampled_s) - 1)]
        tokens = bisect.bisect_right(family.times.tokens_s, room) - 1
        return min(MOST_SAFE_BUDGET, max(LEAST_SAFE_BUDGET, tokens // 64 * 64))

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
        return tuple(
            f"{name}: {requirement.text} (met by at most {1 - late:.1%})"
            for name in classes
            if name in self.slos
            for requirement in requirements(self.slos[name])
            if (late := self._late(family, name, requirement)) > 1.0 - requirement.share
        )

    def _other_limits(self, family: Family, failure: Trial) -> Trial | None:
        """A passing trial on the failed trial's rung under other limits, or None.

        Smaller chunks can help TPOT, larger ones TTFT. A sequence limit above the peak of running sequences never
        acted; fewer sequences can only help TPOT, more can only help TTFT.
        """
        choices, tried = self.choices[family.model], failure.variant.limits
        budget, sequences = tried.max_num_batched_tokens, tried.max_num_seqs
        if "tpot" in failure.metrics:
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
            if not sequences <= budget <= MOST_BUDGET:
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
        if pinned is not None and budget < max_num_seqs:
            return None
        key = (family.key, max_num_seqs, budget)
        if key not in self._variants:
            limits = Limits(
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max(budget, max_num_seqs),
                max_model_len=family.max_model_len,
            )
            cache = family.cache(limits)
            self._variants[key] = Variant(family, limits, cache) if cache is not None else None
        return self._variants[key]

    def trial(self, variant: Variant, rung: Rung, classes: tuple[str, ...]) -> Trial:
        """Simulate one group of equal replicas under its rung's share of `classes`.

        Where none of them states an objective there is nothing to refute, and the rung passes unsimulated.
        """
        slos = {name: slo for name, slo in self.slos.items() if name in classes}
        if not slos:
            return Trial(variant, rung, classes, (), frozenset(), 1.0, 0, simulated=False)
        self.simulations += 1
        workload = self.part(classes, rung.share)
        group = FleetGroup(id="priced", replicas=rung.replicas, model=variant.replica)
        routes = tuple(Route(request_class=name, group="priced", share=1.0) for name in workload.classes)
        result = simulate_fleet((group,), routes, workload, refute=slos)
        broken, metrics = broken_limits(result, workload, slos)
        return Trial(
            variant=variant,
            rung=rung,
            classes=classes,
            broken=broken,
            metrics=metrics,
            seen=float((result.group_index >= 0).mean()) if len(workload) else 1.0,
            running_peak=max(load.running_peak for load in result.groups),
        )


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
    return tuple(broken), _metrics_of(broken)


def _metrics_of(broken: Iterable[str]) -> frozenset[str]:
    text = " ".join(broken).lower()
    return frozenset(word for word in ("ttft", "tpot", "e2e") if word in text)


def decisive(slo: SLO) -> Requirement:
    """The requirement that optimistic families are held to: the one on TPOT, which most often rules devices out."""
    found = requirements(slo)
    return next((r for r in found if any(metric == "tpot" for metric, _ in r.thresholds)), found[0])


def busiest_part(workload: Workload, requests: int) -> Workload:
    """The stretch that holds at least `requests` requests of every class on average and the most tokens; re-based to 0.

    The whole workload where it is not at least twice as long.
    """
    wanted = requests * len(workload.classes)
    if len(workload) < 2 * wanted:
        return workload
    seconds = workload.horizon_s * wanted / len(workload)
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
