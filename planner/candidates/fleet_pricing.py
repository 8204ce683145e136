"""Prices of the configurations of a large fleet: on two draws of the traffic, many at once, each asked what matters.

A load counts as carried when the part of the fleet that stands for all of it keeps every limit on the planned traffic
and on another draw of it. So what is priced holds for more than one sample, and plans are seldom refuted afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

from planner.candidates.family import Family
from planner.candidates.pricing import Pricer
from planner.candidates.rungs import Bracket
from planner.simulate import Workload
from specs.deployment import SLO, ModelChoices

USUAL_KNEE = 0.75  # share of the optimistic load that replicas keep their limits at, before any is known


@dataclass(kw_only=True)
class FleetPricer(Pricer):
    """Prices families on the planned traffic and on another draw; where none was taken, on the planned one alone."""

    _unseen: Pricer | None = None  # of the other draws that were taken
    _least: Mapping[str, float] = field(default_factory=dict)  # by column: the share below which it is worth nothing
    _knees: dict[tuple[str, str], float] = field(default_factory=dict)  # by model and device ("": any)
    _strides: dict[str, int] = field(default_factory=dict)  # by column: rungs to the next one tried

    def has_unseen(self, classes: tuple[str, ...]) -> bool:
        """Whether another draw of these classes, all of one model, was taken."""
        return self._unseen is not None and classes in self._unseen._own

    def take_unseen(self, classes: tuple[str, ...], drawn: Workload | None) -> None:
        """Take another draw of these classes; None: it has no request of one, so the planned one stands for it."""
        if self._unseen is None:
            known = {item.name: getattr(self, item.name) for item in fields(Pricer) if not item.name.startswith("_")}
            self._unseen = Pricer(**known, _variants=self._variants)
        self._unseen._own[classes] = self.own(classes) if drawn is None else drawn

    def keep_few(self) -> None:
        """Let go the requests of single classes, once their work is known, but for the few that floors are of."""
        for model in self.classes_of.values():
            for name in model if len(model) > 1 else ():
                self.few(name)
                self._own.pop((name,), None)

    def let_go(self) -> None:
        """Let go all parts of the traffic, and the other draw; what is asked for again is made again."""
        self._own, self._screens, self._parts, self._unseen = {}, {}, {}, None

    def narrow_for(self, asked: Iterable[tuple[Bracket, float]]) -> None:
        """Narrow all brackets at the same time; with each, the share below which it is worth nothing.

        What closes has passed on the planned traffic; it stays closed where it passes on the other draw, too.
        """
        listed = list(asked)
        self._least = {bracket.key: least for bracket, least in listed}
        self.narrow(*(bracket for bracket, _ in listed))
        self._confirm([bracket for bracket, _ in listed])
        for bracket, _ in listed:
            if bracket.passed is not None:
                knee = bracket.rungs[bracket.passed].per_replica * bracket.load
                family = bracket.family
                for place in ((family.model, family.device.name), (family.model, ""), ("", family.device.name)):
                    self._knees[place] = knee

    def _confirm(self, brackets: Iterable[Bracket]) -> None:
        """Try what closed on the other draw; what fails there failed."""
        if self._unseen is None:
            return
        closed = [
            (bracket, bracket.passed, bracket.variant)
            for bracket in brackets
            if bracket.closed and bracket.passed is not None and bracket.variant is not None and bracket.simulated
        ]
        before = self._unseen.simulations
        trials = self._unseen.trials(
            (limits, bracket.rungs[index], bracket.classes) for bracket, index, limits in closed
        )
        self.simulations += self._unseen.simulations - before
        for (bracket, index, _), trial in zip(closed, trials, strict=True):
            if not trial.passed:
                bracket.failed, bracket.failure, bracket.passed = index, trial, None

    def _matters(self, bracket: Bracket) -> bool:
        return bracket.upper > self._least.get(bracket.key, 0.0)

    def _next_rung(self, bracket: Bracket) -> int:
        """The rung that tells the most: the lightest that still matters, where the family is expected to fail there.

        Where it should pass, the one where it should end; then by growing strides, and halfway between a rung that
        passed and one that failed.
        """
        low, least = bracket.failed + 1, self._least.get(bracket.key, 0.0)
        high = len(bracket.rungs) - 1 if bracket.passed is None else bracket.passed - 1
        matters = max((i for i in range(low, high + 1) if _share(bracket, i) >= least), default=low)
        if bracket.passed is not None:
            if _share(bracket, bracket.passed) < least:
                return matters
            if bracket.failed >= 0:
                return (low + high) // 2
            return max(low, bracket.passed - self._next_stride(bracket))
        if bracket.failed >= 0:
            return min(matters, bracket.failed + self._next_stride(bracket))
        knee = self._knee(bracket.family)
        likely = next((i for i in range(low, high + 1) if bracket.rungs[i].per_replica * bracket.load <= knee), high)
        return min(likely, matters)

    def _next_stride(self, bracket: Bracket) -> int:
        stride = self._strides.get(bracket.key, 1)
        self._strides[bracket.key] = 2 * stride
        return stride

    def _knee(self, family: Family) -> float:
        known = self._knees
        places = ((family.model, family.device.name), (family.model, ""), ("", family.device.name))
        return next((known[place] for place in places if place in known), USUAL_KNEE)

    def again(self, slos: dict[str, SLO], choices: dict[str, ModelChoices]) -> Pricer:
        """As of any pricer, and of the other draw."""
        other = super().again(slos, choices)
        assert isinstance(other, FleetPricer)
        other._knees, other._strides = {}, {}
        other._unseen = None if self._unseen is None else self._unseen.again(slos, choices)
        return other


def _share(bracket: Bracket, index: int) -> float:
    """Share of the demand that a replica carries if the rung at `index` passes."""
    share = bracket.rungs[index].per_replica * bracket.factor
    return min(share, 1.0 / bracket.load) if bracket.load > 0 else share
