"""Simulated annealing over ranges that need not align: machines on parallel ways through the layers, links included.

A state gives each machine a range of layers, or none. At a boundary b between layers, the machines that hold layers on
both sides of b carry at most their speeds together, and those that end at b hand to those that begin there at most the
flow of a small bipartite network. Each such sum bounds the flow of the placement. The energy is the sum of the shares
by which they fall short of a wanted flow; where none falls short by more than the best flow so far, the maximum flow of
the placement decides.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable

from planner.optimize.layer_placement.anneal import least_cut
from planner.optimize.layer_placement.flow import placement_flow
from planner.optimize.layer_placement.instance import LayerInstance, Placement
from planner.optimize.layer_placement.search import Effort

STEPS = 10_000  # of one run
AIMS = (1.01, 1.02, 1.04, 1.08)  # wanted flow beside the best one
HEATS = (0.015, 0.03, 0.06)  # at the start of a run, of the wanted flow
COLDER = 1 / 15  # heat at the end of a run beside that at its start
MOST_REMEMBERED = 200_000  # flows between machines

Span = tuple[int, int]
Spans = tuple[Span | None, ...]  # by machine: [first, end)
Held = tuple[tuple[int, int], ...]  # machines with the number of layers that each holds


class RangeSearch:
    """What a state is worth, and moves to other ones."""

    def __init__(self, instance: LayerInstance, draw: random.Random) -> None:
        self.instance = instance
        self.draw = draw
        self.speed = [[instance.speed(machine, k) for k in range(instance.layers + 1)] for machine in self.machines]
        self.lengths = [[k for k, speed in enumerate(speeds) if speed > 0] for speeds in self.speed]
        self.known: dict[tuple[Held, Held], float] = {}

    @property
    def machines(self) -> range:
        return range(len(self.instance.types))

    def cuts(self, spans: Spans) -> list[float]:
        """What can pass each boundary at which some range begins or ends, from the source to the sink."""
        begun: dict[int, list[tuple[int, int]]] = defaultdict(list)
        ended: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for machine, span in enumerate(spans):
            if span is not None:
                held = machine, span[1] - span[0]
                begun[span[0]].append(held)
                ended[span[1]].append(held)
        found, across = [], 0.0
        for boundary in sorted({0, self.instance.layers, *begun, *ended}):
            tails, heads = tuple(ended.get(boundary, ())), tuple(begun.get(boundary, ()))
            across -= sum(self.speed[machine][k] for machine, k in tails)
            found.append(across + self.handed(boundary, tails, heads))
            across += sum(self.speed[machine][k] for machine, k in heads)
        return found

    def handed(self, boundary: int, tails: Held, heads: Held) -> float:
        """Tokens/s that those ending at a boundary hand to those beginning there; the source and sink at the ends."""
        if boundary in (0, self.instance.layers):
            ends = self.instance.sources if boundary == 0 else self.instance.sinks
            return sum(min(self.speed[machine][k], ends.get(machine, 0.0)) for machine, k in heads or tails)
        value = self.known.get((tails, heads))
        if value is None:
            if len(self.known) > MOST_REMEMBERED:
                self.known.clear()
            links = self.instance.links
            few, many = (tails, heads) if len(tails) <= len(heads) else (heads, tails)
            rows = [[links.get((i, j) if few is tails else (j, i), 0.0) for j, _ in many] for i, _ in few]
            value = least_cut([self.speed[i][k] for i, k in few], [self.speed[j][k] for j, k in many], rows)
            self.known[tails, heads] = value
        return value

    def anneal(self, spans: Spans, best: float, wanted: float, heat: float, effort: Effort) -> tuple[float, Spans]:
        """(tokens/s, state) of the best state met that carries more than `best`, else `best` and the start."""
        found, energy = spans, _energy(self.cuts(spans), wanted)
        for step in range(STEPS):
            if step % 256 == 0 and effort.late:
                break
            moved = self.draw.choice(MOVES)(self, spans)
            if moved is None or not self.fits(spans, moved):
                continue
            cuts = self.cuts(moved)
            after = _energy(cuts, wanted)
            if after > energy and self.draw.random() >= math.exp((energy - after) / (heat * COLDER ** (step / STEPS))):
                continue
            spans, energy = moved, after
            if min(cuts) > best * (1 + 1e-9):
                flow = placement_flow(self.instance, _placement(spans))
                if flow > best * (1 + 1e-9):
                    best, found = flow, spans
        return best, found

    def fits(self, old: Spans, new: Spans) -> bool:
        """Whether every range that changed is one that its machine can hold."""
        return all(
            was == now or now is None or (0 <= now[0] < now[1] <= self.instance.layers and self.can(machine, now))
            for machine, (was, now) in enumerate(zip(old, new, strict=True))
        )

    def can(self, machine: int, span: Span) -> bool:
        return self.speed[machine][span[1] - span[0]] > 0


def search_ranges(
    instance: LayerInstance, placement: Placement, bound: float, effort: Effort, seed: int
) -> tuple[float, Placement]:
    """(tokens/s, placement) of the best placement met in runs from the best so far, each aiming a little above it."""
    search = RangeSearch(instance, random.Random(seed))
    best, spans = placement_flow(instance, placement), tuple(placement.get(machine) for machine in search.machines)
    while not effort.spent and best < bound * (1 - 1e-6):
        effort.steps -= STEPS
        wanted, heat = search.draw.choice(AIMS) * best, search.draw.choice(HEATS)
        best, spans = search.anneal(spans, best, min(wanted, bound), heat, effort)
    return best, _placement(spans)


def _placement(spans: Spans) -> Placement:
    return {machine: span for machine, span in enumerate(spans) if span is not None}


def _energy(cuts: list[float], wanted: float) -> float:
    return sum(1 - cut / wanted for cut in cuts if cut < wanted)


def _boundaries(spans: Spans) -> list[int]:
    return sorted({boundary for span in spans if span is not None for boundary in span})


def _reassign(search: RangeSearch, spans: Spans) -> Spans | None:
    """One machine holds another range, mostly between boundaries that there are; or none."""
    draw, known = search.draw, _boundaries(spans)
    machine = draw.choice(search.machines)
    if not known or not search.lengths[machine]:
        return None
    span: Span | None = None
    if draw.random() >= 0.08:
        first = draw.choice(known) if draw.random() < 0.9 else draw.randrange(search.instance.layers)
        ends = [end for end in known if 0 < end - first <= search.lengths[machine][-1]]
        between = bool(ends) and draw.random() < 0.85
        end = draw.choice(ends) if between else first + draw.choice(search.lengths[machine])
        span = (first, end)
        if not between and draw.random() < 0.5:
            span = (2 * first - end, first)
    return _replaced(spans, {machine: span}) if span != spans[machine] else None


def _swap(search: RangeSearch, spans: Spans) -> Spans | None:
    """Two machines change ranges."""
    one, other = search.draw.choice(search.machines), search.draw.choice(search.machines)
    return _replaced(spans, {one: spans[other], other: spans[one]}) if spans[one] != spans[other] else None


def _slide(search: RangeSearch, spans: Spans) -> Spans | None:
    """A boundary moves by a layer, for all machines that begin or end there, or for some."""
    inside = [boundary for boundary in _boundaries(spans) if 0 < boundary < search.instance.layers]
    if not inside:
        return None
    at, by = search.draw.choice(inside), search.draw.choice((-1, 1))
    some = search.draw.random() < 0.3
    changed: dict[int, Span | None] = {}
    for machine, span in enumerate(spans):
        if span is not None and at in span and not (some and search.draw.random() < 0.5):
            changed[machine] = (span[0] + by * (span[0] == at), span[1] + by * (span[1] == at))
    return _replaced(spans, changed) if changed else None


def _shift_layer(search: RangeSearch, spans: Spans) -> Spans | None:
    """A layer is taken from one place and put in at another: ranges over the one shrink, over the other grow."""
    out, into = search.draw.randrange(search.instance.layers), search.draw.randrange(search.instance.layers)
    if out == into:
        return None
    return tuple(
        span and (span[0] - (span[0] > out) + (span[0] > into), span[1] - (span[1] > out) + (span[1] > into))
        for span in spans
    )


def _exchange_blocks(search: RangeSearch, spans: Spans) -> Spans | None:
    """Two neighbouring blocks of layers, between boundaries that no machine crosses, change their order."""
    held = [span for span in spans if span is not None]
    clean = [b for b in _boundaries(spans) if not any(first < b < end for first, end in held)]
    if len(clean) < 3:
        return None
    a, b, c = sorted(search.draw.sample(clean, 3))

    def moved(span: Span | None) -> Span | None:
        if span is None or not a <= span[0] < c:
            return span
        by = c - b if span[0] < b else a - b
        return span[0] + by, span[1] + by

    return tuple(moved(span) for span in spans)


def _split(search: RangeSearch, spans: Spans) -> Spans | None:
    """The machines of a range, with a spare one where it is alone, share its layers out to two ranges."""
    held = [span for span in spans if span is not None and span[1] - span[0] > 1]
    if not held:
        return None
    span = search.draw.choice(held)
    machines = [machine for machine, its in enumerate(spans) if its == span]
    spare = [machine for machine, its in enumerate(spans) if its is None]
    if len(machines) == 1 and spare:
        machines.append(search.draw.choice(spare))
    if len(machines) == 1:
        return None
    search.draw.shuffle(machines)
    middle, cut = search.draw.randrange(span[0] + 1, span[1]), search.draw.randrange(1, len(machines))
    return _replaced(spans, {m: (span[0], middle) if n < cut else (middle, span[1]) for n, m in enumerate(machines)})


def _merge(search: RangeSearch, spans: Spans) -> Spans | None:
    """A boundary goes: what ended there also holds a range that began there, and the other way round."""
    inside = [boundary for boundary in _boundaries(spans) if 0 < boundary < search.instance.layers]
    if not inside:
        return None
    at = search.draw.choice(inside)
    tails = sorted({span for span in spans if span is not None and span[1] == at})
    heads = sorted({span for span in spans if span is not None and span[0] == at})
    if not tails or not heads:
        return None
    first, end = search.draw.choice(tails)[0], search.draw.choice(heads)[1]
    return tuple((span[0], end) if span in tails else (first, span[1]) if span in heads else span for span in spans)


def _replaced(spans: Spans, changed: dict[int, Span | None]) -> Spans:
    new = list(spans)
    for machine, span in changed.items():
        new[machine] = span
    return tuple(new)


MOVES: tuple[Callable[[RangeSearch, Spans], Spans | None], ...] = (
    *(_reassign, _reassign, _reassign, _swap, _swap, _swap, _slide, _slide),
    *(_shift_layer, _exchange_blocks, _split, _merge),
)
