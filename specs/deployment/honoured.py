"""What can be declared but is not honoured by this version: refused by name and line, never ignored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from specs.deployment.models import DeploymentSpec, HardwareSpec, ScheduleSpec, TrafficClass
from specs.errors import NotHonouredError

Statement = tuple[str, str]  # path of the field, why it is refused


def refuse_unhonoured(
    spec: DeploymentSpec,
    lines: Mapping[str, int] | None = None,
    file: str | None = None,
    *,
    planning: bool = True,
) -> None:
    """Raise one `NotHonouredError` that names every statement of `spec` that this version does not honour.

    `lines` maps paths of fields to lines of `file`, where the spec came from one. Not `planning`, the spec is that of a
    plan to be simulated, and what only planning does not honour is accepted.
    """
    refused = unhonoured_statements(spec, planning=planning)
    if not refused:
        return
    rows = []
    for path, reason in refused:
        line = (lines or {}).get(path)
        rows.append(f"  line {line}: {path}: {reason}" if line else f"  {path}: {reason}")
    one = len(rows) == 1
    message = f"declares {'a statement' if one else f'{len(rows)} statements'} that this version does not honour:\n"
    first = (lines or {}).get(refused[0][0])
    raise NotHonouredError(message + "\n".join(rows), file=file, line=first if one else None)


def unhonoured_statements(spec: DeploymentSpec, *, planning: bool = True) -> tuple[Statement, ...]:
    """(path, reason) of every declared statement without effect in this version, in the order of the document."""
    return tuple(_statements(spec, planning))


def _statements(spec: DeploymentSpec, planning: bool) -> Iterator[Statement]:
    scheduled = any(
        item.window is not None or (item.arrivals is not None and item.arrivals.diurnal is not None)
        for item in spec.traffic
    )
    yield from _of_hardware(spec.hardware, scheduled=scheduled)
    for index, item in enumerate(spec.traffic):
        if planning:
            yield from _of_class_in_planning(f"traffic[{index}]", item)
    if spec.schedule != ScheduleSpec() and not scheduled:
        yield "schedule", "no traffic changes over time: state a window or diurnal arrivals"


def _of_hardware(hardware: HardwareSpec, *, scheduled: bool) -> Iterator[Statement]:
    if hardware.host.nvme_bytes_per_s is not None and not scheduled:  # weights of replicas that start come from there
        yield "hardware.host.nvme", "nothing is kept on local storage"


def _of_class_in_planning(path: str, item: TrafficClass) -> Iterator[Statement]:
    """What `capstan simulate` honours in a plan's spec, and planning does not decide yet."""
    if item.closed_loop is not None and item.throughput is None:
        yield f"{path}.closed_loop", "a closed loop has no rate to plan for; state throughput: {at_least: ...} too"
