"""Fit the power profiles of the catalogue to published measurements of serving.

    python -m benchmarks.fit_energy DATA_DIR -o specs/catalog/power

DATA_DIR holds splitwise_perf_model.csv as published with Splitwise (Mutinifni/splitwise-sim, MIT): times and power of
Llama-2-70B and BLOOM-176B under prompts and batches of many sizes. Power stands there for the A100 only, as shares of
its limit. Two kinds of rows are used:

- `average_power` of a request as that of decoding, where the prompt took at most a tenth of the time. Averages fall as
  prompts grow, down to the idle power, which no work explains: such rows are left out with the longer prompts.
- `peak_power` as that of the prompt, where it took 0.1 to 0.4 s: a shorter one falls between two readings, and of a
  longer one the peak is the hottest moment, not the mean. Readings peak above the limit; the limit is what is fitted.

Each row's FLOPs and bytes follow from the model's shape; times are the measured ones. Four fifths of the readings
are fitted (fixed seed), the errors written are those of the others. Every other device borrows the three shares.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.energy import step_joules
from specs.catalog import device_names, load_device
from specs.document import DType
from specs.errors import InputError
from specs.profile import DeviceFacts, PowerProfile

SOURCE = "splitwise_perf_model.csv of Mutinifni/splitwise-sim (Patel et al. 2024, Splitwise), MIT licence"
DEVICE, NAME_THERE = "a100-sxm", "a100-80gb"
LARGEST_PROMPT_SHARE = 0.1
PROMPT_S = (0.1, 0.4)
SEED = 20260101


@dataclass(frozen=True)
class Served:
    """Shape of a served model, 16 bit: Llama-2-70B by its config, BLOOM-176B by its model card."""

    parameters: float
    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    def flops(self, tokens: float, keys: float) -> float:
        """Of `tokens` tokens that see `keys` keys each."""
        return tokens * (2.0 * self.parameters + 4.0 * self.layers * self.heads * self.head_dim * keys)

    def kv_bytes(self, tokens: float) -> float:
        return tokens * 4.0 * self.layers * self.kv_heads * self.head_dim

    @property
    def weights_bytes(self) -> float:
        return 2.0 * self.parameters


MODELS = {
    "llama2-70b": Served(68.98e9, 80, 64, 8, 128),
    "bloom-176b": Served(176.25e9, 70, 112, 112, 128),
}


class Shape(NamedTuple):
    """What was measured together; all sizes in tokens."""

    model: str
    ranks: int
    prompt: int
    batch: int
    output: int


@dataclass(frozen=True)
class Row:
    """Mean watts of one device, and the work of one step of it."""

    kind: str  # "decode" or "prompt"
    watts: float
    flops: float
    moved_bytes: float
    seconds: float


def read_rows(path: Path, device: DeviceFacts) -> list[Row]:
    """One or two rows of each measured shape; repeated measurements are averaged."""
    shapes: dict[Shape, list[dict[str, str]]] = defaultdict(list)
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            for line in csv.DictReader(stream):
                if line["hardware"] == NAME_THERE and float(line["average_power"] or 0.0) > 0.0:
                    sizes = (int(line[key]) for key in ("tensor_parallel", "prompt_size", "batch_size", "token_size"))
                    shapes[Shape(line["model"], *sizes)].append(line)
        rows = [row for shape, lines in sorted(shapes.items()) for row in _rows_of(shape, lines, device)]
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"cannot be read as Splitwise's measurements ({error!r})", file=str(path)) from None
    if not rows:
        raise InputError(f"holds no power of {NAME_THERE}", file=str(path))
    return rows


def _rows_of(shape: Shape, lines: list[dict[str, str]], device: DeviceFacts) -> list[Row]:
    name, ranks, prompt, batch, output = shape
    model = MODELS[name]
    mean = {
        key: float(np.mean([float(line[key]) for line in lines]))
        for key in ("average_power", "peak_power", "prompt_time", "token_time", "e2e_time")
    }
    found = []
    if mean["prompt_time"] <= LARGEST_PROMPT_SHARE * mean["e2e_time"]:
        keys = prompt + output / 2.0
        moved = (model.weights_bytes + model.kv_bytes(batch * keys)) / ranks
        watts = mean["average_power"] * device.power_w
        found.append(Row("decode", watts, model.flops(batch, keys) / ranks, moved, mean["token_time"] / 1e3))
    if PROMPT_S[0] <= mean["prompt_time"] / 1e3 <= PROMPT_S[1]:
        moved = (model.weights_bytes + model.kv_bytes(batch * prompt)) / ranks
        watts = min(1.0, mean["peak_power"]) * device.power_w
        found.append(
            Row("prompt", watts, model.flops(batch * prompt, prompt / 2.0) / ranks, moved, mean["prompt_time"] / 1e3)
        )
    return found


def split(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """(four fifths to fit, a fifth held out) of each kind, the same rows every time."""
    generator = np.random.default_rng(SEED)
    train: list[Row] = []
    held: list[Row] = []
    for kind in ("decode", "prompt"):
        own = [row for row in rows if row.kind == kind]
        out = set(generator.permutation(len(own))[: round(len(own) / 5)].tolist())
        train += [row for index, row in enumerate(own) if index not in out]
        held += [row for index, row in enumerate(own) if index in out]
    return train, held


def fit(rows: list[Row], device: DeviceFacts) -> PowerProfile:
    """Least squares of watts / limit. A row at the limit says only that the need is no less: it counts while the
    prediction is below it. Repeated on the rows that count, until they are the same."""
    range_w = device.power_w - device.idle_power_w
    busy = np.array([(row.watts - device.idle_power_w) / range_w for row in rows])
    compute = np.array([row.flops / row.seconds / device.flops[DType.BF16] for row in rows])
    memory = np.array([row.moved_bytes / row.seconds / device.hbm_bytes_per_s for row in rows])
    columns = np.stack([np.ones_like(busy), compute, memory], axis=1)
    counts = np.ones(len(rows), dtype=bool)
    for _ in range(100):
        shares = _nonnegative_least_squares(columns[counts], busy[counts])
        now = (busy < 1.0) | (columns @ shares < 1.0)
        if np.array_equal(now, counts):
            break
        counts = now
    active, per_compute, per_memory = (round(float(share), 4) for share in shares)
    return PowerProfile(
        device=device.name,
        confidence="measured",
        provenance="draft",
        licence="MIT",
        active_share=active,
        compute_share=per_compute,
        memory_share=per_memory,
    )


def _nonnegative_least_squares(columns: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """The best of the least squares over every subset of the few columns that comes out without a negative share."""
    count = columns.shape[1]
    best, least = np.zeros(count), float(np.sum(wanted**2))
    for bits in range(1, 2**count):
        chosen = [index for index in range(count) if bits >> index & 1]
        found = np.linalg.lstsq(columns[:, chosen], wanted, rcond=None)[0]
        squares = float(np.sum((columns[:, chosen] @ found - wanted) ** 2))
        if found.min() >= 0.0 and squares < least:
            best, least = np.zeros(count), squares
            best[chosen] = found
    return best


def errors(rows: list[Row], device: DeviceFacts, power: PowerProfile) -> NDArray[np.float64]:
    """Relative errors of watts; a row at the limit is met by every need above it."""
    joules = [step_joules(row.flops, row.moved_bytes, row.seconds, device, power) for row in rows]
    watts = np.array([float(joule) / row.seconds for joule, row in zip(joules, rows, strict=True)])
    relative: NDArray[np.float64] = np.abs(watts / np.array([row.watts for row in rows]) - 1.0)
    return relative


def quantiles(relative: NDArray[np.float64], prefix: str) -> dict[str, float]:
    return {
        f"{prefix}_p50": round(float(np.quantile(relative, 0.5)), 4),
        f"{prefix}_max": round(float(relative.max()), 4),
    }


def fitted_profile(path: Path) -> PowerProfile:
    """The profile of the measured device, with what is known of its error."""
    device = load_device(DEVICE)
    train, held = split(read_rows(path, device))
    power = fit(train, device)
    found: dict[str, float] = {}
    for kind in ("decode", "prompt"):
        found |= quantiles(errors([row for row in held if row.kind == kind], device, power), kind)
    provenance = (
        f"fitted by benchmarks/fit_energy.py to {SOURCE}: {len(train)} of {len(train) + len(held)} readings for "
        f"Llama-2-70B and BLOOM-176B, seed {SEED}; error_quantiles are relative errors of watts on the others; idle "
        "power is the device file's estimate"
    )
    return power.model_copy(update={"provenance": provenance, "error_quantiles": found})


def borrowed_profile(name: str, source: PowerProfile) -> PowerProfile:
    return source.model_copy(
        update={
            "device": name,
            "confidence": "borrowed",
            "relative_of": source.device,
            "provenance": f"shares of (limit - idle) borrowed from {source.device}: no power of {name} at work is "
            f"published with its load. {source.device}: {source.provenance}",
            "error_quantiles": {},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder with splitwise_perf_model.csv")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the profiles")
    arguments = parser.parse_args()
    try:
        measured = fitted_profile(arguments.data / "splitwise_perf_model.csv")
    except InputError as error:
        parser.error(str(error))
    for name in device_names():
        profile = measured if name == measured.device else borrowed_profile(name, measured)
        profile.write(arguments.output / f"{name}.json")
    shares = f"active {measured.active_share}, compute {measured.compute_share}, memory {measured.memory_share}"
    print(f"{measured.device}: {shares}")
    print(f"held out: {measured.error_quantiles}")


if __name__ == "__main__":
    main()
