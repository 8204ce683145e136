"""Measured request rates in the place of the cost model: what one replica serves within its SLOs, by size of request.

A file has one row for each model, device, tensor-parallel size and bucket of sizes: `requests_per_s` of one replica
that serves requests of up to `prompt_tokens` and `output_tokens` only. Buckets add up as shares of a replica's time
(T. Griggs et al., Melange, 2024): a class keeps sum over buckets of (its rate in the bucket / measured rate) replicas
busy. A request belongs to the least bucket, by prompt and then by output, that holds it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from planner.candidates.family import Family
from planner.facts import Facts
from specs.catalog import load_device
from specs.deployment import DeploymentSpec
from specs.errors import InputError, nearest_names
from specs.traffic.columns import Table, read_csv

if TYPE_CHECKING:
    from planner.optimize.whole_plan import WholePlan

COLUMNS = ("model", "device", "tp", "prompt_tokens", "output_tokens", "requests_per_s")
Configuration = tuple[str, str, int]  # model, device of the catalogue, tensor-parallel size
Bucket = tuple[int, int]  # the most prompt and output tokens


@dataclass(frozen=True)
class MeasuredRates:
    """Requests/s of one replica within its SLOs, by configuration and bucket."""

    file: str
    rates: Mapping[Configuration, Mapping[Bucket, float]]
    dtypes: Mapping[str, tuple[str, str]]  # model -> weights and KV types that were measured: the first that it lists

    def covers(self, family: Family, prompt_tokens: NDArray[np.int64], output_tokens: NDArray[np.int64]) -> bool:
        """Whether the family was measured, and with buckets for every one of these requests."""
        return math.isfinite(self.busy(family, prompt_tokens, output_tokens))

    def busy(self, family: Family, prompt_tokens: NDArray[np.int64], output_tokens: NDArray[np.int64]) -> float:
        """Replica-seconds that these requests take; infinite where the family, or a size, was not measured."""
        rates = self._of(family)
        if rates is None:
            return math.inf
        left = np.ones(len(prompt_tokens), np.bool_)
        seconds = 0.0
        for (prompt, output), rate in sorted(rates.items()):
            inside = left & (prompt_tokens <= prompt) & (output_tokens <= output)
            seconds += float(inside.sum()) / rate
            left &= ~inside
        return math.inf if left.any() else seconds

    def _of(self, family: Family) -> Mapping[Bucket, float] | None:
        layout = family.layout
        whole = layout.pipeline_parallel == 1 and layout.attention_data_parallel == 1 and layout.expert_parallel == 1
        dtypes = family.weights_dtype.value, family.kv_dtype.value
        if not whole or family.options.role != "unified" or dtypes != self.dtypes[family.model]:
            return None
        return self.rates.get((family.model, family.device.name, layout.tensor_parallel))


def load_measured(spec: DeploymentSpec, base_dir: Path, facts: Facts) -> MeasuredRates | None:
    """The rates that the spec names; None where it names none. `InputError` with file, line and column."""
    if spec.measured is None:
        return None
    path = base_dir / spec.measured
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", file=str(path), field="measured") from error
    table = read_csv(text, str(path), COLUMNS)
    devices = {facts.devices[pool.device].name for pool in spec.hardware.pools}
    rates: dict[Configuration, dict[Bucket, float]] = {}
    prompts, outputs = table.tokens("prompt_tokens"), table.tokens("output_tokens")
    for row in range(len(table.lines)):
        device = _device(table, row)
        model = _known(table, row, "model", spec.models)
        bucket = int(prompts[row]), int(outputs[row])
        own = rates.setdefault((model, device, _count(table, row)), {})
        if bucket in own:
            raise table.error(row, "prompt_tokens", "this bucket stands twice", "one row for each bucket")
        own[bucket] = _rate(table, row)
    if not any(device in devices for _, device, _ in rates):
        raise InputError(
            "measures none of the spec's devices", file=str(path), field="device", expected=" | ".join(sorted(devices))
        )
    return MeasuredRates(spec.measured, rates, _dtypes(spec, facts))


def measured_notes(whole: WholePlan, rates: MeasuredRates | None) -> list[str]:
    """What a reader of a plan should know of groups whose price was measured."""
    groups = [f"group-{index}" for index, item in enumerate(whole.bought) if item.column.measured]
    if not groups or rates is None:
        return []
    return [
        f"{', '.join(groups)}: basis: measured; how much they carry is what {rates.file} says, and no simulation was "
        "asked; their latencies, power and utilisation here are the cost model's"
    ]


def _dtypes(spec: DeploymentSpec, facts: Facts) -> dict[str, tuple[str, str]]:
    return {
        name: (
            (model.weights or (facts.architectures[name].native_weights_dtype,))[0].value,
            model.kv_cache[0].value if model.kv_cache else "bf16",
        )
        for name, model in spec.models.items()
    }


def _known(table: Table, row: int, column: str, names: Collection[str]) -> str:
    word = table.columns[column][row].strip()
    if word not in names:
        near = nearest_names(word[:80], names)
        hint = f" (nearest: {', '.join(near)})" if near else ""
        raise table.error(row, column, f"names no model of the spec: {word[:40]!r}{hint}", " | ".join(names))
    return word


def _device(table: Table, row: int) -> str:
    word = table.columns["device"][row].strip()
    try:
        return load_device(word).name
    except InputError as error:
        raise table.error(row, "device", error.message, error.expected or "a device of `capstan catalog`") from error


def _count(table: Table, row: int) -> int:
    word = table.columns["tp"][row].strip()
    if not word.isdecimal() or not 1 <= int(word) <= 1024:
        raise table.error(row, "tp", f"is {word[:40]!r}", "a whole number of devices from 1")
    return int(word)


def _rate(table: Table, row: int) -> float:
    word = table.columns["requests_per_s"][row].strip()
    try:
        rate = float(word)
    except ValueError:
        rate = math.nan
    if not (math.isfinite(rate) and rate > 0):
        raise table.error(row, "requests_per_s", f"is {word[:40]!r}", "a positive number of requests per second")
    return rate
