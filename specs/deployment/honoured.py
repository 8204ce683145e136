"""What can be declared but is not honoured by this version: refused by name and line, never ignored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from specs.deployment.models import DeploymentSpec, HardwareSpec, ModelSpec, TrafficClass
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
    for name, model in spec.models.items():
        yield from _of_model(f"models.{name}", model)
    yield from _of_hardware(spec.hardware)
    for index, item in enumerate(spec.traffic):
        yield from _of_class(f"traffic[{index}]", item)
        if planning:
            yield from _of_class_in_planning(f"traffic[{index}]", item)
    if str(spec.objective) not in ("minimise cost", "minimise gpus"):
        yield "objective", f"{spec.objective}: plans minimise cost or gpus"
    if spec.limits.survive_node_failures:
        yield "limits.survive_node_failures", "plans keep no spare nodes"
    if spec.limits.power_w is not None:
        yield "limits.power", "power is not limited"
    if len(spec.choices.engine) > 1:
        yield "choices.engine", f"one engine is planned for at a time, not {len(spec.choices.engine)}"
    if spec.choices.disaggregation == "always":
        yield "choices.disaggregation", "prefill and decode are always served together"


def _of_model(path: str, model: ModelSpec) -> Iterator[Statement]:
    if model.adapters is not None:
        yield f"{path}.adapters", "LoRA adapters are not modelled"
    if model.speculative is not None:
        yield f"{path}.speculative", "speculative decoding is not modelled"


def _of_hardware(hardware: HardwareSpec) -> Iterator[Statement]:
    for index, pool in enumerate(hardware.pools):
        path = f"hardware.pools[{index}]"
        if pool.power_cap_w is not None:
            yield f"{path}.power_cap", "devices are planned at their full power"
        if pool.spot is not None:
            yield f"{path}.spot", "interruptions are not modelled"
    for field in ("dram", "pcie", "nvme"):
        if getattr(hardware.host, field + ("_bytes" if field == "dram" else "_bytes_per_s")) is not None:
            yield f"hardware.host.{field}", "nothing is kept on the host"


def _of_class(path: str, item: TrafficClass) -> Iterator[Statement]:
    if item.window is not None:
        yield f"{path}.window", "traffic is planned for the whole day"
    if item.throughput is not None:
        yield f"{path}.throughput", "throughput is not a limit; state a rate and an slo"


def _of_class_in_planning(path: str, item: TrafficClass) -> Iterator[Statement]:
    """What `capstan simulate` honours in a plan's spec, and planning does not decide yet."""
    if item.closed_loop is not None:
        yield f"{path}.closed_loop", "a closed loop has no rate to plan for; state trace, arrivals or sessions"
    if item.slo is None:
        yield path, f"class {item.name!r} has no slo: plans are made for latency limits"
    if item.priority != "normal":
        yield f"{path}.priority", "planned replicas serve requests first come, first served"
