"""Errors of operator latencies as docs/accuracy.md prints them; see `fit_operators`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.operator_layers import BATCHES, CHUNKS, SPLITS, Case, layer_errors
from benchmarks.operator_scatter import scatter
from benchmarks.operator_tables import DEVICES, SHAPE, held_out, subset
from planner.operators import DeviceModel, OperatorTable, load_operator_profile, predict
from planner.operators.calibrate import FEW, fit_part, measured
from planner.operators.cores import OperatorFacts, operator_facts
from planner.operators.datasheet import fit_datasheet_profile
from planner.operators.grid import Floats, Rows
from planner.operators.lane import KINDS
from planner.operators.profile import HeldOut
from specs.catalog import load_device
from specs.document import write_atomically

Tables = dict[str, dict[str, OperatorTable]]  # device -> family
TWINS = {"h100-sxm": "h200-sxm", "h200-sxm": "h100-sxm"}  # one die
OCTAVES = 4  # of size in one column of the table of sizes
FOLDS = 5  # of MoE models left out
SIZES: dict[str, Callable[[Rows], Floats]] = {
    "gemm": lambda rows: rows["m"] * rows["n"] * rows["k"],
    "context_attention": lambda rows: rows["batch"] * rows["tokens"],
    "generation_attention": lambda rows: rows["batch"] * rows["keys"],
    "moe": lambda rows: rows["tokens"],
    "nccl": lambda rows: rows["bytes"],
    "custom_allreduce": lambda rows: rows["bytes"],
    "mla_context_module": lambda rows: rows["batch"] * rows["length"],
    "mla_generation_module": lambda rows: rows["batch"] * rows["length"],
    "mla_bmm": lambda rows: rows["tokens"] * rows["heads"],
    "moe_a2a": lambda rows: rows["tokens"],
}
HEAD = """# Accuracy of operator latencies

Written by `python -m benchmarks.fit_operators DATA -o specs/catalog/operators --accuracy docs/accuracy.md`; do not
edit. Figures are |predicted / measured - 1| in percent, median / p90, on the kernel tables of NVIDIA
aiconfigurator-core 0.12.0 (Apache-2.0). Errors of whole deployments, and the margins that plans at a stated confidence
take from them: [accuracy-serving.md](accuracy-serving.md).

- Rows out: a random fifth of the rows was not in the fit.
- Shapes out: a fifth of whole shapes was not (widths of a GEMM, head configurations, MoE models, message sizes; of
  collectives that is a handful of sizes, so those figures are chance).
- Core: the physical formula without corrections, rows out.

What these figures do not say. Knots, smoothness and lanes were chosen while looking at splits of the same tables, so
the figures are a little optimistic. The fit is not a few parameters: the median comes from the corrections, see
"core". One engine version per table; latencies are those of replayed launches with a warm L2 and locked clocks.
Times of block-scaled FP8 products and of the expert exchange hold host time of the measured engine. Prefill over a
cached prefix is in no table. Not in any table: INT8 and weight-only products and FP4 (`capstan estimate` takes them:
their own datasheet peak and bytes under the fit of the nearest element type, and says so), point-to-point, norms.

Clocks are derived: peak FP32 FLOP/s of the datasheet / (multiprocessors x FP32 FLOPs per clock of each; 128 on sm_80,
256 on the others, CUDA C++ Programming Guide). That is the highest clock, to which the measured devices were locked:
1.41 GHz (A100), 1.98 (H100, H200), 2.52 (L40S).
"""
LAYERS_HEAD = """## A whole layer

Error of one layer's time on one rank: the operators' predicted seconds added, against the measured ones. Decode at
batch 1 to 256 (the mean over contexts of 1k, 4k and 8k), prefill of one prompt of 512, 2048 and 8192 tokens, TP 1 to 8
with two custom all-reduces, bf16 and (where the tables have it) fp8 weights and cache; experts under a router skew of
1.01. "Rows out": the fit saw none of the rows that the layers use. "Shapes out": nor any row of those widths, head
configurations and experts. Of collectives, each used size is left out alone. Widths that no table holds are replaced by
the nearest measured ones on both sides. First a summary in percent, then each layer, shapes out.
"""
LEFT_OUT_HEAD = """## A device left out

Known of the device: its datasheet. The fit is joint over the devices "known": one set of parameters, each device under
its own peaks, and half of the joint corrections. So the catalogue's devices without tables are predicted. Where a
device of the same architecture is measured (A30 and A100 PCIe, L4 and RTX 4090, H100 PCIe), its fit is taken whole.

What was looked at. No row of the device is in its fit. But kernel generations (before Hopper: 64-row attention tiles,
one Triton source for the experts of all element types, 16-bit attention over an FP8 cache), the weight of the other
generation (0.3) and the carried share of corrections (0.5) were chosen while looking at these figures for A100 and
L40S, and the rule for links through a PCIe host was written with L40S's collectives in view: those columns of L40S are
a fit of one exponent, not a prediction.

Where the error lives, by lane below. Block-scaled FP8 products hold 60 to 100 us of host time on Hopper and 300 us on
L40S, whatever the shape: another kernel (DeepGEMM or Triton) and another host, in no datasheet. FP8 experts run other
kernels before Hopper. Decode and prefill over short windows differ by kernel. A100's tables are of an older engine
(0.14): its eager all-reduce takes 1.4 times as long to launch.
"""
MODELS_HEAD = f"""## MoE models left out

Every model's experts predicted from a fit that saw no row of it (models are left out in {FOLDS} groups), all element
types together, aligned widths.
"""
SIZES_HEAD = f"""## Error against size

Rows out, by size in steps of {OCTAVES} octaves, from the size named on. Size is m n k of a GEMM, batch x tokens or
keys of attention and latent attention, tokens of experts and their exchange, bytes of a message, tokens x heads of
`mla_bmm`.
"""
PLOTS_HEAD = """## Predicted against measured

Rows left out, by first element type (or operation); darker cells hold more rows.
"""


@cache
def facts_of(device: str) -> OperatorFacts:
    return operator_facts(load_device(device))


def left_out_model(tables: Tables, out: str) -> DeviceModel:
    """`out` predicted by a joint fit to the devices of another die."""
    lists = {device: list(tables[device].values()) for device in other_dies(out)}
    return DeviceModel(out, fit_datasheet_profile(lists, facts_of(out), "-", "-"), facts_of(out), 1.0, None)


def ratios_of(tables: dict[str, OperatorTable], model: DeviceModel) -> dict[str, Floats]:
    """Predicted / measured by family, of the rows whose lanes the model has."""
    found = {}
    for family, table in tables.items():
        part = subset(table, np.isin(table.lanes, list(model.profile.lanes.get(family, {}))))
        if len(part.lanes) and part.seconds is not None:
            found[family] = predict(part, model)[0] / part.seconds
    return found


def left_out(tables: Tables, generation: str) -> dict[str, dict[str, HeldOut]]:
    """What a datasheet profile says of its error: measured devices of the generation, predicted without their die."""
    result = {}
    for out in DEVICES:
        if facts_of(out).generation == generation:
            ratios = ratios_of(tables[out], left_out_model(tables, out))
            result[out] = {
                family: HeldOut(rows=len(ratio), p50=round(quantile(ratio, 0.5), 4), p90=round(quantile(ratio, 0.9), 4))
                for family, ratio in ratios.items()
            }
    return result


def other_dies(out: str) -> tuple[str, ...]:
    return tuple(device for device in DEVICES if device not in (out, TWINS.get(out)))


def quantile(ratio: Floats, share: float) -> float:
    return float(np.quantile(np.abs(ratio - 1.0), share))


@dataclass(frozen=True)
class HeldOutRows:
    """Predicted and measured seconds of one lane's rows that a fit did not see, and their size (see `SIZES`)."""

    predicted: Floats
    measured: Floats
    size: Floats

    @property
    def ratio(self) -> Floats:
        return self.predicted / self.measured


Lanes = dict[tuple[str, str], dict[str, HeldOutRows]]  # (family, lane) -> "core", "rows", "shapes"


def held_out_lanes(tables: dict[str, OperatorTable], facts: OperatorFacts) -> Lanes:
    """Two further fits of every lane, without a random fifth of the rows, and without a fifth of the shapes."""
    lanes: Lanes = defaultdict(dict)
    for family, table in tables.items():
        for split in ("rows", "shapes"):
            out = held_out(split, table)
            for name in map(str, np.unique(table.lanes)):
                of_lane = table.lanes == name
                if (of_lane & ~out).sum() < FEW or not (of_lane & out).any():
                    continue
                lane = fit_part(table, name, of_lane & ~out, facts)
                rows, seconds = measured(table, of_lane & out)
                size = SIZES[family](rows)
                lanes[family, name][split] = HeldOutRows(lane.seconds(rows, facts), seconds, size)
                if split == "rows":
                    lanes[family, name]["core"] = HeldOutRows(lane.physical(rows, facts), seconds, size)
    return dict(lanes)


def accuracy(tables: Tables, folder: Path) -> str:
    """The document; writes the plots that it links into `folder`."""
    lanes = {device: held_out_lanes(of, facts_of(device)) for device, of in tables.items()}
    parts = [HEAD, *_by_lane(lanes), *_layers(tables), *_left_out(tables), *_models_left_out(tables), *_sizes(lanes)]
    return "\n".join([*parts, *_plots(lanes, folder)]) + "\n"


def _by_lane(lanes: dict[str, Lanes]) -> list[str]:
    lines = ["## Rows and shapes left out", ""]
    lines += ["| device | family | dtype (lane) | core | rows out | shapes out |", "|---|---|---|---|---|---|"]
    for device, of in lanes.items():
        for family in KINDS:
            groups = list(dict.fromkeys(grouped(family, name) for found, name in of if found == family))
            for group in [*groups, None] if len(groups) > 1 else groups:
                cells = [_cell(_ratios(of, family, group, split)) for split in ("core", "rows", "shapes")]
                lines.append(f"| {device} | {family} | {group or '**all**'} | {' | '.join(cells)} |")
    return [*lines, ""]


def grouped(family: str, lane: str) -> str:
    return lane.split("/")[0] if family in ("nccl", "custom_allreduce", "moe_a2a") else lane


def _ratios(lanes: Lanes, family: str, group: str | None, split: str) -> Floats:
    parts = [
        found[split].ratio
        for (of, name), found in lanes.items()
        if of == family and split in found and group in (None, grouped(family, name))
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def _cell(ratio: Floats) -> str:
    """`median / p90` of the relative error in percent; `-` without rows."""
    if not len(ratio):
        return "-"
    return f"{100 * quantile(ratio, 0.5):.1f} / {100 * quantile(ratio, 0.9):.1f}"


def _left_out(tables: Tables) -> list[str]:
    families = [family for family in KINDS if family not in ("mla_bmm", "moe_a2a")]
    lines = [LEFT_OUT_HEAD, f"| device | known | {' | '.join(families)} |", f"|---|---|{'---|' * len(families)}"]
    by_lane = []
    for out in DEVICES:
        model = left_out_model(tables, out)
        lines.append(_line(out, ", ".join(other_dies(out)), ratios_of(tables[out], model), families))
        by_lane += _lane_lines(tables[out], model)
        if out in TWINS:
            twin = DeviceModel(out, load_operator_profile(TWINS[out]), facts_of(out), 1.0, None)
            lines.append(_line(out, f"{TWINS[out]} (same die)", ratios_of(tables[out], twin), families))
    lines += ["", "Families with a median above 20 %, by lane; last the median of predicted / measured:", ""]
    return [*lines, "| device | family | lane | error | middle |", "|---|---|---|---|---|", *by_lane, ""]


def _lane_lines(tables: dict[str, OperatorTable], model: DeviceModel) -> list[str]:
    lines = []
    for family, ratio in ratios_of(tables, model).items():
        if quantile(ratio, 0.5) <= 0.2:
            continue
        table = tables[family]
        for name in map(str, np.unique(table.lanes)):
            of_lane = ratios_of({family: subset(table, table.lanes == name)}, model).get(family)
            if of_lane is not None:
                middle = float(np.median(of_lane))
                lines.append(f"| {model.device} | {family} | {name} | {_cell(of_lane)} | {middle:.2f} |")
    return lines


def _line(out: str, known: str, ratios: dict[str, Floats], families: list[str]) -> str:
    cells = [_cell(ratios.get(family, np.zeros(0))) for family in families]
    return f"| {out} | {known} | {' | '.join(cells)} |"


def _layers(tables: Tables) -> list[str]:
    sizes = [("decode", size) for size in BATCHES] + [("prefill", size) for size in CHUNKS]
    lines = [
        LAYERS_HEAD,
        "| device | model | median, rows out | p90 | median, shapes out | p90 |",
        "|---|---|---|---|---|---|",
    ]
    detail = [
        "",
        f"| device | model | dtype | TP | {' | '.join(f'{phase} {size}' for phase, size in sizes)} |",
        f"|---|---|---|---|{'---|' * len(sizes)}",
    ]
    for device, of in tables.items():
        errors = layer_errors(of, facts_of(device))
        for model in dict.fromkeys(case.model for case in errors):
            own = {case: error for case, error in errors.items() if case.model == model}
            cells = [
                f"{100 * float(np.quantile([error[split] for error in own.values()], share)):.1f}"
                for split in SPLITS
                for share in (0.5, 0.9)
            ]
            lines.append(f"| {device} | {model} | {' | '.join(cells)} |")
            for dtype, ranks in dict.fromkeys((case.dtype, case.ranks) for case in own):
                found = [own.get(Case(model, dtype, ranks, phase, size)) for phase, size in sizes]
                row = " | ".join("-" if one is None else f"{100 * one['shapes']:.1f}" for one in found)
                detail.append(f"| {device} | {model} | {dtype} | {ranks} | {row} |")
    return [*lines, *detail, ""]


def _models_left_out(tables: Tables) -> list[str]:
    lines = [
        MODELS_HEAD,
        f"| hidden x width, experts, top k | {' | '.join(DEVICES)} |",
        f"|---|{'---|' * len(DEVICES)}",
    ]
    cells: dict[tuple[float, ...], dict[str, str]] = defaultdict(dict)
    for device, of in tables.items():
        for model, ratio in _experts_left_out(of["moe"], facts_of(device)).items():
            cells[model][device] = _cell(ratio)
    for model in sorted(cells):
        hidden, inter, topk, experts = map(int, model)
        row = " | ".join(cells[model].get(device, "-") for device in DEVICES)
        lines.append(f"| {hidden} x {inter}, {experts}, {topk} | {row} |")
    return [*lines, ""]


def _experts_left_out(table: OperatorTable, facts: OperatorFacts) -> dict[tuple[float, ...], Floats]:
    key = np.stack([table.rows[name] for name in SHAPE["moe"]])
    models, index = np.unique(key, axis=1, return_inverse=True)
    found: dict[tuple[float, ...], list[Floats]] = defaultdict(list)
    number = index.ravel()
    for name in map(str, np.unique(table.lanes)):
        of_lane = table.lanes == name
        for fold in range(FOLDS):
            out = of_lane & (number % FOLDS == fold)
            if "unaligned" in name or not out.any() or (of_lane & ~out).sum() < FEW:
                continue
            rows, seconds = measured(table, out)
            ratio = fit_part(table, name, of_lane & ~out, facts).seconds(rows, facts) / seconds
            for one in np.unique(number[out]):
                found[tuple(models[:, one].tolist())].append(ratio[number[out] == one])
    return {model: np.concatenate(ratios) for model, ratios in found.items()}


def _sizes(lanes: dict[str, Lanes]) -> list[str]:
    lines = [SIZES_HEAD]
    for family in KINDS:
        found = {
            device: [one["rows"] for (of, _), one in by.items() if of == family and "rows" in one]
            for device, by in lanes.items()
        }
        found = {device: parts for device, parts in found.items() if parts}
        every = np.concatenate([np.log2(part.size) // OCTAVES for parts in found.values() for part in parts])
        bins = np.arange(every.min(), every.max() + 1)
        names = [f"2^{int(OCTAVES * one)}" for one in bins]
        lines += [f"| {family} | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
        for device, parts in found.items():
            ratio = np.concatenate([part.ratio for part in parts])
            octave = np.concatenate([np.log2(part.size) // OCTAVES for part in parts])
            lines.append(f"| {device} | {' | '.join(_cell(ratio[octave == one]) for one in bins)} |")
        lines.append("")
    return lines


def _plots(lanes: dict[str, Lanes], folder: Path) -> list[str]:
    folder.mkdir(exist_ok=True)
    lines = [PLOTS_HEAD, f"| family | {' | '.join(lanes)} |", f"|---|{'---|' * len(lanes)}"]
    for family in KINDS:
        cells = []
        for device, of in lanes.items():
            groups: dict[str, list[HeldOutRows]] = defaultdict(list)
            for (found, name), one in of.items():
                if found == family and "rows" in one:
                    groups[name.split("/")[0]].append(one["rows"])
            if not groups:
                cells.append("-")
                continue
            pairs = {
                label: (np.concatenate([x.predicted for x in parts]), np.concatenate([x.measured for x in parts]))
                for label, parts in groups.items()
            }
            name = f"{device}-{family}.svg"
            write_atomically(folder / name, scatter(f"{device}: {family}, rows left out", pairs))
            cells.append(f"![{device} {family}]({folder.name}/{name})")
        lines.append(f"| {family} | {' | '.join(cells)} |")
    return lines
