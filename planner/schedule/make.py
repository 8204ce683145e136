"""`make_schedule`: every slot planned, the cheapest way through the day, each plan on it simulated in its slot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from planner.answers.resolve import Solved, solved
from planner.assemble import assemble
from planner.facts import Facts, Machine, load_facts
from planner.optimize.master import Bought, Decision, Master, group_id
from planner.optimize.whole_plan import WholePlan
from planner.problem import Problem, pose
from planner.schedule.document import Chosen, written
from planner.schedule.path import cheapest_cycle
from planner.schedule.slots import Slot, changes_over_time, slots
from planner.schedule.switching import switch
from specs.deployment import DeploymentSpec
from specs.deployment.stated import refuse_stated
from specs.errors import InputError, NoPlanError
from specs.plan import Plan, Route
from specs.schedule import Schedule

NOBODY = "off"  # what runs while no class sends anything
FLAT = "flat"  # planned for all classes at once at their highest rates
Progress = Callable[[str], None]


@dataclass(frozen=True)
class _Kind:
    """Slots with the same traffic: their problem, and the best plan for it."""

    problem: Problem
    master: Master
    decision: Decision


@dataclass
class _Day:
    """Everything decided: kinds by name, the candidates that may run in them, and what was simulated of that."""

    spec: DeploymentSpec
    slots: tuple[Slot, ...]
    kind_of: tuple[str, ...]  # by slot
    kinds: dict[str, _Kind]
    candidates: dict[str, Plan]  # by name; those of the kinds, and `FLAT`
    decisions: dict[str, Decision]  # likewise
    fits: dict[tuple[str, str], Decision | None] = field(default_factory=dict)  # (kind, candidate): None: refuted
    documents: dict[tuple[str, str], Plan] = field(default_factory=dict)  # likewise


def make_schedule(
    spec: DeploymentSpec,
    base_dir: str | Path,
    *,
    seed: int = 0,
    progress: Progress = lambda text: None,
    version: str = "",
    machine: Machine | None = None,
) -> Schedule:
    """The cheapest certified schedule for a `spec` whose traffic changes over the day.

    Arguments as of `make_plan`. Raises `InputError` where nothing changes over time or the objective is not one that
    adds up over hours, `NoPlanError` where no plan satisfies some slot.
    """
    _check(spec)
    day = _planned(spec, Path(base_dir), seed, progress, machine, version)
    while True:
        names = cheapest_cycle(_values(day), _changes(day))
        if names is None:
            raise NoPlanError(
                "no way through the day was found: the pools do not hold two successive plans at once, and no plan "
                "serves every slot",
                conflict=("hardware.pools",),
            )
        if all(_serves(day, kind, name, progress) for kind, name in zip(day.kind_of, names, strict=True)):
            break
    flat = _flat(day, progress)
    chosen = [_chosen(day, kind, name, version) for kind, name in zip(day.kind_of, names, strict=True)]
    return written(spec, version, day.slots, chosen, None if flat is None else day.candidates[flat])


def _chosen(day: _Day, kind: str, name: str, version: str) -> Chosen:
    """The plan of a slot with what it does there; made once for each kind and candidate."""
    if kind == NOBODY:
        return Chosen(day.candidates.get(name), 0.0)
    here, decision = day.kinds[kind], day.fits[kind, name]
    assert decision is not None
    if (kind, name) not in day.documents:
        day.documents[kind, name] = (
            day.candidates[name] if kind == name else assemble(here.problem, here.master, decision, version)
        )
    return Chosen(day.documents[kind, name], here.decision.bound)


def _check(spec: DeploymentSpec) -> None:
    refuse_stated(spec, "a schedule")
    if not changes_over_time(spec):
        raise InputError(
            "no class has a window or a diurnal rate, so one plan serves all day",
            field="traffic",
            expected="a class with `window: 01:00-05:00` or `arrivals: {process: diurnal, ...}`, or `capstan plan`",
        )
    if str(spec.objective) not in ("minimise cost", "minimise gpus"):
        raise InputError(
            f"cannot {spec.objective} over a day", field="objective", expected="minimise cost or minimise gpus"
        )


@dataclass(frozen=True)
class _Search:
    """How each declaration of the day is decided."""

    base_dir: Path
    seed: int
    facts: Facts
    machine: Machine | None
    progress: Progress

    def best(self, spec: DeploymentSpec) -> Solved:
        problem = pose(spec, self.base_dir, seed=self.seed, machine=self.machine, facts=self.facts)
        return solved(problem, self.progress)

    def of_slot(self, slot: Slot, spec: DeploymentSpec) -> _Kind:
        """The best plan for a slot. Raises `NoPlanError` as `make_plan` does, with the time of day before it."""
        when = f"{_clock(slot.start_s)} to {_clock(slot.end_s)}"
        self.progress(f"planning {when}")
        found = self.best(spec)
        if found.decision is not None:
            return _Kind(found.problem, found.master, found.decision)
        if found.gave_up is None:
            from planner.answers.conflict import explain_conflict

            error = explain_conflict(found.problem, self.progress)
        else:
            error = found.gave_up
        raise NoPlanError(f"{when}: {error.message}", conflict=error.conflict, mends=error.mends)


def _planned(
    spec: DeploymentSpec, base_dir: Path, seed: int, progress: Progress, machine: Machine | None, version: str
) -> _Day:
    """Every kind of slot planned, and everything at once."""
    search = _Search(base_dir, seed, load_facts(spec, base_dir, machine), machine, progress)
    found = slots(spec)
    kinds: dict[str, _Kind] = {}
    kind_of: list[str] = []
    named: list[tuple[DeploymentSpec, str]] = []
    for slot in found:
        if slot.spec is None:
            kind_of.append(NOBODY)
            continue
        name = next((name for known, name in named if known == slot.spec), None)
        if name is None:
            name = f"plan-{len(named)}"
            named.append((slot.spec, name))
            kinds[name] = search.of_slot(slot, slot.spec)
        kind_of.append(name)
    decisions = {name: kind.decision for name, kind in kinds.items()}
    candidates = {name: assemble(kind.problem, kind.master, kind.decision, version) for name, kind in kinds.items()}
    day = _Day(spec, found, tuple(kind_of), kinds, candidates, decisions)
    for name, decision in decisions.items():
        day.fits[name, name] = decision
    progress("planning everything at once")
    flat = search.best(spec)
    if flat.decision is not None:  # else it is too much at once for the pools, and plans must change
        day.decisions[FLAT] = flat.decision
        day.candidates[FLAT] = assemble(flat.problem, flat.master, flat.decision, version)
    return day


def _clock(moment_s: float) -> str:
    minutes = round(moment_s / 60.0)
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def _values(day: _Day) -> list[dict[str, float]]:
    """By slot, what each candidate costs over it; those that cannot serve it, or are known not to, are left out."""
    found = []
    for slot, kind in zip(day.slots, day.kind_of, strict=True):
        if kind == NOBODY:
            running = {name: decision.value for name, decision in day.decisions.items()}
            found.append({NOBODY: 0.0, **{name: value * slot.hours for name, value in running.items()}})
            continue
        least = day.kinds[kind].decision.priced_bound
        found.append(
            {
                name: decision.value * slot.hours
                for name, decision in day.decisions.items()
                if day.fits.get((kind, name), decision) is not None
                and decision.value >= least * (1 - 1e-6)  # no plan below the bound can serve the slot
                and _routes(day, kind, name) is not None
            }
        )
    return found


def _changes(day: _Day) -> Callable[[str, str], float | None]:
    def price(before: str, after: str) -> float | None:
        plans = day.candidates.get(before), day.candidates.get(after)
        change = switch(plans, (before, after), day.spec, 0.0)
        return None if change is None else change.value

    return price


def _routes(day: _Day, kind: str, name: str) -> tuple[Route, ...] | None:
    """Where a candidate sends the classes of a kind; None where it does not serve a model.

    A class that it was not planned for goes to all groups of its model that take requests, by their replicas.
    """
    decision, spec = day.decisions[name], day.kinds[kind].problem.spec
    routes: list[Route] = []
    for item in spec.traffic:
        own = [route for route in decision.routes if route.request_class == item.name]
        takers = {route.group for route in decision.routes}
        if not own:
            serving = [
                (group_id(index), bought.replicas)
                for index, bought in enumerate(decision.bought)
                if bought.column.family.model == item.model and group_id(index) in takers
            ]
            total = sum(replicas for _, replicas in serving)
            own = [Route(request_class=item.name, group=group, share=count / total) for group, count in serving]
        if not own:
            return None
        routes += own
    return tuple(routes)


def _serves(day: _Day, kind: str, name: str, progress: Progress) -> bool:
    """Whether the candidate keeps every limit of the kind when simulated, on fresh seeds too; asked once."""
    if kind == NOBODY:
        return True
    if (kind, name) not in day.fits:
        progress(f"simulating {name} in the slots of {kind}")
        day.fits[kind, name] = _tried(day, kind, name)
    return day.fits[kind, name] is not None


def _tried(day: _Day, kind: str, name: str) -> Decision | None:
    here, decision, routes = day.kinds[kind], day.decisions[name], _routes(day, kind, name)
    if routes is None:
        return None
    spec = here.problem.spec
    bought = tuple(
        Bought(replace(item.column, classes=_classes_of(routes, index, item, here)), item.replicas)
        for index, item in enumerate(decision.bought)
    )
    whole = WholePlan(bought, routes, decision.placement, spec.hardware, spec.choices.router)
    judged = here.master.judgement(whole, {})
    if judged.broken:
        return None
    return replace(
        decision,
        bought=bought,
        priced=False,
        routes=routes,
        bound=min(here.decision.bound, decision.value),
        priced_bound=min(here.decision.priced_bound, decision.value),
        columns=here.decision.columns,
        result=judged.result,
        second_opinion=here.decision.second_opinion,
        fresh=judged.fresh,
        notes=judged.notes,
    )


def _classes_of(routes: tuple[Route, ...], index: int, item: Bought, here: _Kind) -> tuple[str, ...]:
    """The classes that a group serves in slots of a kind; a decode group takes over what its model's others do."""
    if item.role == "decode":
        return here.problem.classes_of[item.column.family.model]
    return tuple(route.request_class for route in routes if route.group == group_id(index))


def _flat(day: _Day, progress: Progress) -> str | None:
    """The cheapest candidate that serves every slot; None where none does."""
    for name in sorted(day.decisions, key=lambda name: (day.decisions[name].value, name)):
        if all(name in slot for slot in _values(day)) and all(
            _serves(day, kind, name, progress) for kind in dict.fromkeys(day.kind_of)
        ):
            return name
    return None
