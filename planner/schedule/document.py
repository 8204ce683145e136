"""From chosen plans to the `Schedule` document, and its re-check from the document alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.optimize.certify import recheck
from planner.optimize.laws import check
from planner.schedule.slots import Slot, cycle_s
from planner.schedule.switching import switch
from specs.deployment import DeploymentSpec, resolved
from specs.errors import CapstanError
from specs.plan import Check, Plan
from specs.schedule import Schedule, ScheduleSlot, Switch


@dataclass(frozen=True)
class Chosen:
    """What runs in a slot: the plan as it was simulated with the slot's traffic; None: nothing."""

    plan: Plan | None
    bound: float  # per hour, of any plan for the slot


def written(
    spec: DeploymentSpec, version: str, slots: Sequence[Slot], chosen: Sequence[Chosen], flat: Plan | None
) -> Schedule:
    """The schedule; equal plans are kept once. Raises `CapstanError` where its re-check finds a broken law."""
    plans: dict[str, Plan] = {}
    names = [None if item.plan is None else _named(plans, item.plan) for item in chosen]
    flat_name = None if flat is None else _named(plans, flat)
    switches = _switches(spec, slots, names, plans)
    rows = tuple(_slot(slot, name, item) for slot, name, item in zip(slots, names, chosen, strict=True))
    value = sum(row.value_per_hour * slot.hours for row, slot in zip(rows, slots, strict=True))
    value += sum(change.value for change in switches)
    bound = sum(row.bound_per_hour * slot.hours for row, slot in zip(rows, slots, strict=True))
    whole_s = cycle_s(spec)
    schedule = Schedule(
        name=spec.name,
        capstan=version,
        objective=str(spec.objective),
        cycle_s=whole_s,
        slots=rows,
        switches=switches,
        value=value,
        bound=bound,
        gap=max(0.0, (value - bound) / value) if value > 0 else 0.0,
        flat_plan=flat_name,
        flat_value=None if flat is None else flat.certificate.value * whole_s / 3600.0,
        plans=plans,
        checks=(),
        notes=tuple(_notes(spec, switches)),
        spec=resolved(spec),
    )
    checks = recheck_schedule(schedule)
    broken = [item.law for item in checks if not item.holds]
    if broken:
        raise CapstanError(f"the schedule failed its own re-check and is not given out: {'; '.join(broken)}")
    return schedule.model_copy(update={"checks": checks})


def _named(plans: dict[str, Plan], plan: Plan) -> str:
    """The name of a plan in the schedule; a new one where it is not there yet."""
    for name, known in plans.items():
        if known == plan:
            return name
    plans[name := f"plan-{len(plans)}"] = plan
    return name


def _slot(slot: Slot, name: str | None, item: Chosen) -> ScheduleSlot:
    rates: dict[str, float] = {}
    if item.plan is not None:
        rates = {prediction.request_class: prediction.rate_per_s for prediction in item.plan.predictions.classes}
    return ScheduleSlot(
        start_s=slot.start_s,
        end_s=slot.end_s,
        requests_per_s=rates,
        plan=name,
        value_per_hour=item.plan.certificate.value if item.plan is not None else 0.0,
        bound_per_hour=item.bound,
    )


def _switches(
    spec: DeploymentSpec, slots: Sequence[Slot], names: Sequence[str | None], plans: dict[str, Plan]
) -> tuple[Switch, ...]:
    """Between all neighbours, and from the last slot to the first; those that change nothing are left out."""
    found = []
    for index, slot in enumerate(slots):
        pair = names[index - 1], names[index]
        change = switch(_both(plans, pair), pair, spec, slot.start_s)
        if change is None:
            raise CapstanError(f"the pools do not hold both plans at the change at {slot.start_s:g} s")
        if change.started or change.stopped:
            found.append(change)
    return tuple(found)


def _both(plans: Mapping[str, Plan], names: tuple[str | None, str | None]) -> tuple[Plan | None, Plan | None]:
    before, after = (None if name is None else plans[name] for name in names)
    return before, after


def _notes(spec: DeploymentSpec, switches: Sequence[Switch]) -> list[str]:
    found = ["every slot is planned for its highest rate and simulated by itself"]
    recorded = [item.name for item in spec.traffic if item.trace is not None]
    if recorded:
        found.append(f"{', '.join(recorded)}: the busiest part of the recording is taken for all of its time of day")
    if switches:
        found.append("during a change both plans are up: new replicas start before it, old ones drain after it")
    if any(change.started for change in switches) and spec.schedule.switching.start_s is None:
        source = "NVMe" if spec.hardware.host.nvme_bytes_per_s is not None else "the network"
        found.append(f"a replica starts by loading its weights over {source}, and takes a minute more (assumed)")
    return found


def recheck_schedule(schedule: Schedule) -> tuple[Check, ...]:
    """Every law that a schedule must obey, from the document alone: slots, plans, changes and the sums."""
    spec = DeploymentSpec.model_validate(schedule.spec)
    rows, plans = schedule.slots, schedule.plans
    gaps = sum(one.end_s != other.start_s for one, other in itertools.pairwise(rows))
    hours = [(row.end_s - row.start_s) / 3600.0 for row in rows]
    found = [
        check("slots follow each other without gaps", gaps, "==", 0),
        check("the first slot begins with the cycle", rows[0].start_s, "==", 0.0),
        check("the last slot ends with the cycle", rows[-1].end_s, "==", schedule.cycle_s),
    ]
    for name, plan in plans.items():
        broken = sum(not item.holds for item in recheck(plan))
        found.append(check(f"{name}: laws that its own re-check finds broken", broken, "==", 0))
    for index, row in enumerate(rows):
        law = f"slot {index}: its value is that of its plan"
        own = None if row.plan is None else plans[row.plan]
        found.append(check(law, row.value_per_hour, "==", own.certificate.value if own is not None else 0.0))
        asked = sorted(item["name"] for item in own.spec["traffic"]) if own is not None else []
        served = float(asked == sorted(row.requests_per_s))
        found.append(check(f"slot {index}: its plan is for the classes that are asked for", served, "==", 1.0))
    found += _changes_hold(schedule, spec)
    value = sum(row.value_per_hour * hour for row, hour in zip(rows, hours, strict=True))
    value += sum(change.value for change in schedule.switches)
    bound = sum(row.bound_per_hour * hour for row, hour in zip(rows, hours, strict=True))
    found.append(check("the value adds up", schedule.value, "==", value))
    found.append(check("the bound adds up", schedule.bound, "==", bound))
    found.append(check("the bound is not above the value", schedule.bound, "<=", schedule.value))
    if schedule.flat_plan is not None and schedule.flat_value is not None:
        flat = plans[schedule.flat_plan].certificate.value * schedule.cycle_s / 3600.0
        found.append(check("the flat value is that of its plan all the time", schedule.flat_value, "==", flat))
        found.append(check("no single plan is better", schedule.value, "<=", schedule.flat_value))
    return tuple(found)


def _changes_hold(schedule: Schedule, spec: DeploymentSpec) -> list[Check]:
    """Every change is there, costs what it is said to, and the pools hold both plans meanwhile."""
    found = []
    names = [row.plan for row in schedule.slots]
    stated = {change.at_s: change for change in schedule.switches}
    for index, row in enumerate(schedule.slots):
        pair = names[index - 1], names[index]
        change = switch(_both(schedule.plans, pair), pair, spec, row.start_s)
        law = f"change at {row.start_s:g} s"
        found.append(check(f"{law}: pools hold both plans", float(change is not None), "==", 1.0))
        if change is not None and (change.started or change.stopped):
            found.append(check(f"{law}: is as its plans say", float(stated.get(row.start_s) == change), "==", 1.0))
    return found
