"""The price of a configuration: how much of a model's demand one replica carries within every SLO, by simulation.

The price is the highest rung of a configuration's ladder (`planner.candidates.rungs`) on which some limits (token
budget, sequences) keep every SLO. A simulation that refutes ends as soon as the refutation is certain.

Prices come from the busiest part of the window (`planner.candidates.screens`); whole plans are then judged on all of
it. So prices are careful, and a plan may load its columns a little above them where the judge agrees.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from planner.candidates.disaggregated import priced_fleet
from planner.candidates.enumerate import TOKEN_BUDGETS, sequence_limits, widest_limits
from planner.candidates.family import Family, Variant
from planner.candidates.laws import Laws
from planner.candidates.replica import tokens_per_sequence
from planner.candidates.rungs import FIRST_FACTOR, Bracket, Rung, Trial, ladder
from planner.simulate import FleetResult, Miss, Workload, meets, simulate_fleet
from planner.simulate.together import together
from planner.throughput import loop_of, loop_tokens_per_s, tokens_per_s
from specs.deployment import SLO, ModelChoices
from specs.plan import Limits, Route, RouterName

LEAST_SAFE_BUDGET, MOST_SAFE_BUDGET = 256, 4096
SAMPLE_RATIO, SAMPLE_RUNGS = 0.95, 59  # of the ladder of a part of a large fleet, down to 1/20 of the optimistic load
# Share of the requests seen when a limit was already lost, up to which other limits are not tried. In the examples and
# benchmarks they mended 64 of 229 trials that lost TTFT, and 25 of 328 that lost TPOT, none of these before 0.5.
FAR_FROM_PASSING, FAR_FROM_TPOT = 0.3, 0.45
FAR_STRIDE = 0.75  # of the load that was lost so early
# rungs that a bracket is asked at a time: with roles, a programme takes longer to solve than a trial takes
STEPS = {"unified": 1, "prefill": 3, "decode": 3}
AT_A_TIME = 2  # trials, where one bracket asks for several

Ask = tuple[Variant, Rung, tuple[str, ...]]  # limits, load, classes
Search = Generator[list[Ask], list[Trial], None]  # asks for trials, the likeliest first; is told one or more of them


@dataclass(kw_only=True)
class Pricer(Laws):
    """Prices families against the declared workload. Deterministic: same input, same simulations, same prices."""

    choices: dict[str, ModelChoices]
    simulations: int = 0
    # by role: share of the optimistic load at which the family priced last still kept its SLOs
    knees: dict[str, float] = field(default_factory=lambda: {"unified": 0.6, "prefill": 0.6, "decode": 0.4})
    first_factor: dict[tuple[str, str], float] = field(default_factory=dict)  # by model and role, of brackets to come
    router: RouterName = "least_outstanding"
    _variants: dict[tuple[str, int, int], Variant | None] = field(default_factory=dict)
    _trials: dict[tuple[str, Limits, Rung, tuple[str, ...]], Trial] = field(default_factory=dict)

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
        factor = self.first_factor.get((family.model, family.options.role), FIRST_FACTOR)
        return Bracket(family, classes, load, rungs, factor=factor)

    def _ladder(self, family: Family, load: float) -> list[Rung]:
        if self.sampled is None or load < 2 * self.sampled:
            return ladder(load, family.most_replicas)
        replicas = min(self.sampled, family.most_replicas)
        return [Rung(replicas, replicas / load * SAMPLE_RATIO**step) for step in range(SAMPLE_RUNGS)]

    def narrow(self, *brackets: Bracket) -> None:
        """Try rungs between what failed and what passed, of each bracket; their trials run at the same time."""
        searches = [self._narrowing(bracket) for bracket in brackets]
        asking = [(search, asks) for search in searches if (asks := next(search, None)) is not None]
        while asking:
            most = max(1, AT_A_TIME // len(asking))
            asked = [asks[:most] for _, asks in asking]
            told = iter(self.trials([ask for asks in asked for ask in asks]))
            answers = [[next(told) for _ in asks] for asks in asked]
            asking = [
                (search, asks)
                for (search, _), trials in zip(asking, answers, strict=True)
                if (asks := _told(search, trials)) is not None
            ]

    def _narrowing(self, bracket: Bracket) -> Search:
        """Trials of one bracket: of the next rung, and beside it of the one that comes next if that fails."""
        steps = STEPS[bracket.family.options.role]
        ahead: list[Trial] = []
        while (steps > 0 or ahead) and not bracket.closed and self._matters(bracket):
            first = bracket.variant or self.first_limits(bracket.family, bracket.classes)
            untried = bracket.failed < 0 and bracket.passed is None
            if first is None or (untried and self._refuted_unsimulated(bracket, first)):
                return
            if not ahead:
                index = self._next_rung(bracket)
                asked = dict.fromkeys((index, _rung_after(bracket, index)))
                ahead = list((yield [(first, bracket.rungs[rung], bracket.classes) for rung in asked]))
            trial = ahead.pop(0)
            index = bracket.rungs.index(trial.rung)
            if _near(trial):
                trial = (yield from self._other_limits(bracket.family, trial)) or trial
            if trial.passed:
                bracket.passed, bracket.variant, bracket.simulated = index, trial.variant, trial.simulated
                self.knees[bracket.family.options.role] = bracket.rungs[index].per_replica * bracket.load
                ahead = []
            else:
                bracket.failed, bracket.failure = index, trial
            steps -= 1

    def _refuted_unsimulated(self, bracket: Bracket, variant: Variant) -> bool:
        """Whether no load keeps the limits even without any queue; the bracket is closed then."""
        broken = self.hopeless(bracket.family, bracket.classes)
        if broken:
            bracket.failed = len(bracket.rungs) - 1
            rung = bracket.rungs[bracket.failed]
            bracket.failure = Trial(variant, rung, bracket.classes, broken, metrics_of(broken), 0.0, 0, simulated=False)
        return bool(broken)

    def _matters(self, bracket: Bracket) -> bool:
        """Whether it is worth knowing more of the price."""
        return True

    def _next_rung(self, bracket: Bracket) -> int:
        """The first is the rung above the one where the family priced last ended, which probably fails.

        One trial then says nearly as much as the price itself. What failed by far is asked for less at once.
        """
        if bracket.passed is not None:
            return (bracket.failed + bracket.passed) // 2
        knee, last = self.knees[bracket.family.options.role], len(bracket.rungs) - 1
        likely = next((i for i, rung in enumerate(bracket.rungs) if rung.per_replica * bracket.load <= knee), last)
        if bracket.failed > likely + 2:  # far below the estimate: widen the stride
            index = min(last, 2 * bracket.failed - likely)
        else:
            index = likely - 1 if bracket.failed < likely - 1 else bracket.failed + 1
        if bracket.failure is not None and bracket.failure.seen <= FAR_FROM_PASSING:
            most = FAR_STRIDE * bracket.failure.rung.per_replica
            index = max(index, next((i for i, rung in enumerate(bracket.rungs) if rung.per_replica <= most), last))
        return index

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
        limits = self.tpot_limits(classes)
        if not limits or family.options.role != "unified":  # apart, prompts hold up no tokens
            return 0
        # what a step takes beside its tokens: some context to read, rows to sample
        room = 0.95 * min(limits) - family.times.sampled_s[min(64, len(family.times.sampled_s) - 1)]
        tokens = (bisect.bisect_right(family.times.tokens_s, room) - 1) // family.layout.attention_data_parallel
        return min(MOST_SAFE_BUDGET, self._most_budget(family), max(LEAST_SAFE_BUDGET, tokens // 64 * 64))

    def _other_limits(self, family: Family, failure: Trial) -> Generator[list[Ask], list[Trial], Trial | None]:
        """A passing trial on the failed trial's rung under other limits, or None."""
        asks = [(variant, failure.rung, failure.classes) for variant in self._others(family, failure)]
        closest = None
        while asks:
            told = yield asks
            for trial in told:
                if trial.passed:
                    return trial
                if (closest is not None and trial.seen <= closest.seen) or trial.metrics.isdisjoint(failure.metrics):
                    return None  # further in this direction is no better
                closest = trial
            asks = asks[len(told) :]
        return None

    def _others(self, family: Family, failure: Trial) -> list[Variant]:
        """Limits that may mend a failed trial, the likeliest first; only those that boot.

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
        fitting = [option for option in options if option[0] <= option[1] <= self._most_budget(family)]
        variants = [self.variant(family, sequences, budget) for sequences, budget in fitting]
        return [variant for variant in variants if variant is not None]

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
        """One group of equal replicas under its rung's share of `classes`; the same trial is simulated only once."""
        return self.trials([(variant, rung, classes)])[0]

    def trials(self, asks: Iterable[Ask]) -> list[Trial]:
        """As `trial`, of all of them at the same time."""
        tasks: dict[tuple[str, Limits, Rung, tuple[str, ...]], Callable[[], Trial]] = {}
        found = [((variant.family.key, variant.limits, rung, classes), variant) for variant, rung, classes in asks]
        for key, variant in found:
            if key not in self._trials and key not in tasks:
                tasks[key] = self._task(variant, *key[2:])
        self._trials |= zip(tasks, together(tasks.values()), strict=True)
        return [replace(self._trials[key], variant=variant) for key, variant in found]

    def _task(self, variant: Variant, rung: Rung, classes: tuple[str, ...]) -> Callable[[], Trial]:
        """What simulates a trial, when it is called: traffic is cut before, as that is done once for many trials.

        Where none of the classes states an objective there is nothing to refute, and the rung passes unsimulated.
        """
        slos = {name: slo for name, slo in self.slos.items() if name in classes}
        if not slos and len(classes) == 1 and classes[0] in self.throughputs:
            return self._loop_trial(variant, rung, classes[0])
        if not slos:
            return partial(Trial, variant, rung, classes, (), frozenset(), 1.0, 0, simulated=False)
        self.simulations += 1
        fleet = priced_fleet(variant, rung.replicas, self.part(classes, rung.share))
        workload = fleet.workload
        routes = tuple(Route(request_class=name, group=fleet.entry, share=1.0) for name in workload.classes)

        def simulated() -> Trial:
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

        return simulated

    def _loop_trial(self, variant: Variant, rung: Rung, name: str) -> Callable[[], Trial]:
        """A closed loop that keeps the replicas full, against the tokens/s that the rung asks for."""
        if variant.family.options.role != "unified":
            apart = (f"{name}: a throughput alone is served by replicas that do both prefill and decode",)
            return partial(Trial, variant, rung, (name,), apart, frozenset(), 0.0, 0, simulated=False)
        self.simulations += 1
        part, wanted = self.part((name,), min(1.0, rung.share)), tokens_per_s(self.own((name,)), name) * rung.share
        seats = rung.replicas * variant.replica.limits.max_num_seqs
        clients, there = loop_of(self.throughputs[name], rung.share, seats)

        def simulated() -> Trial:
            found = there * loop_tokens_per_s(
                variant.replica, rung.replicas, clients, part.prompt_tokens, part.output_tokens
            )
            text = f"{name}: throughput >= {wanted:,.0f} tokens/s (reaches {found:,.0f})"
            broken = () if found >= wanted else (text,)
            peak = math.ceil(clients / rung.replicas)
            return Trial(variant, rung, (name,), broken, frozenset(), 1.0, peak)

        return simulated

    def again(self, slos: dict[str, SLO], choices: dict[str, ModelChoices]) -> Pricer:
        """A pricer of the same traffic that has simulated nothing yet: what promises do not touch is taken over."""
        other = replace(self, knees=dict(self.knees), slos=slos, choices=choices, simulations=0, first_factor={})
        if slos == self.slos:
            other.first_factor = dict(self.first_factor)
        elif other.screened() != self.screened():
            other._screens, other._parts = {}, {}
        if choices != self.choices:
            other._variants = {}
        if slos != self.slos:
            other._trials, other._late = {}, {}
        return other


def _rung_after(bracket: Bracket, index: int) -> int:
    """The rung to try when the one at `index` fails."""
    if bracket.passed is not None:
        return max(index, (index + bracket.passed) // 2)
    return min(index + 1, len(bracket.rungs) - 1)


def _told(search: Search, trials: list[Trial]) -> list[Ask] | None:
    """What a search asks next, when it is told trials; None when it has ended."""
    try:
        return search.send(trials)
    except StopIteration:
        return None


def _near(trial: Trial) -> bool:
    """Whether other limits may mend a failed trial."""
    far = FAR_FROM_TPOT if trial.metrics == {"tpot"} else FAR_FROM_PASSING
    return not trial.passed and trial.seen > far


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


def _in_words(miss: Miss) -> str:
    return f"{miss.request_class}: {miss.text} (met by {miss.attained:.1%})"
