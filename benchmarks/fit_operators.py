"""Fit the operator latency profiles of the catalogue to tables of measured kernels; write their accuracy.

    python -m benchmarks.fit_operators DATA -o specs/catalog/operators [--accuracy docs/accuracy.md] [--golden FILE]

DATA holds DEVICE/FAMILY/ENGINE/VERSION/*_perf.parquet as published with NVIDIA aiconfigurator-core 0.12.0
(Apache-2.0). Rerunnable: same tables, same bytes. About ten golden rows per device and family are kept out of every
fit. Errors are of two further fits: without a random fifth of the rows, and without a fifth of the shapes (whole
widths, head configurations, MoE models, message sizes). The shipped parameters use all rows but the golden ones.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet

from planner.operators import borrowed_model, lint, load_operator_profile, predict, read_columns
from planner.operators.cores import OperatorFacts, operator_facts
from planner.operators.fit import fit_lane
from planner.operators.grid import Floats
from planner.operators.lane import KINDS, Lane, new_lane
from planner.operators.profile import HeldOut, LaneFit, OperatorProfile
from planner.operators.tables import NUMBERS, TEXTS, OperatorTable
from specs.catalog import load_device
from specs.document import write_atomically

SOURCE = "NVIDIA aiconfigurator-core 0.12.0 kernel tables (Apache-2.0, Copyright NVIDIA CORPORATION & AFFILIATES)"
CLOCK_SOURCE = "highest multiprocessor clock, from memory: not yet checked against a datasheet"
NOT_IDENTIFIED = (
    "gemm: k_step_s is fixed, fill often ends on a bound",
    "context_attention: step_s is fixed",
    "moe: l2_share and expert_s often end on a bound",
    "fp8_block gemm and mla: start_s holds host time of the measured engine, not device time",
)
DEVICES = {  # catalogue name: (folder, clock)
    "a100-sxm": ("a100_sxm", 1.41e9),
    "h100-sxm": ("h100_sxm", 1.98e9),
    "h200-sxm": ("h200_sxm", 1.98e9),
    "l40s": ("l40s", 2.52e9),
}
LEFT_OUT = {"a100-sxm": "h100-sxm", "h100-sxm": "h200-sxm", "h200-sxm": "h100-sxm", "l40s": "a100-sxm"}
SHAPE = {
    "gemm": ("n", "k"),
    "context_attention": ("heads", "kv_heads", "head_dim"),
    "generation_attention": ("heads", "kv_heads", "head_dim"),
    "moe": ("hidden", "inter", "topk", "experts"),
    "nccl": ("bytes",),
    "custom_allreduce": ("bytes",),
    "mla_context_module": ("heads",),
    "mla_generation_module": ("heads",),
}
GOLDEN_ROWS = 10
FEW = 8  # rows below which a lane is not fitted
Errors = dict[tuple[str, str], dict[str, Floats]]  # (family, lane) -> split -> relative errors


def read_table(folder: Path, family: str) -> tuple[OperatorTable, dict[str, list[Any]]] | None:
    """The one table of a family under a device's folder, checked; None where the device has none."""
    paths = sorted(folder.glob(f"*/*/*/{family}_perf.parquet"))
    if not paths:
        return None
    if len(paths) > 1:
        raise SystemExit(f"{folder}: expected one {family}_perf.parquet, found {len(paths)}")
    table = parquet.read_table(paths[0])
    columns = {name: table[name].to_pylist() for name in table.column_names}
    return read_columns(columns, str(paths[0])), columns


def held_out(split: str, family: str, table: OperatorTable) -> Any:
    """Mask of the rows that a fit must not see."""
    generator = np.random.default_rng(7)
    if split == "rows":
        return generator.random(len(table.lanes)) < 0.2
    key = np.stack([table.rows[name] for name in SHAPE[family]])
    shapes, index = np.unique(key, axis=1, return_inverse=True)
    return (generator.random(shapes.shape[1]) < 0.2)[index.ravel()]


def fit_part(table: OperatorTable, name: str, chosen: Any, facts: OperatorFacts, native_fp8: bool) -> Lane:
    lane = new_lane(table.family, name, native_fp8)
    rows = {column: values[chosen] for column, values in table.rows.items()}
    assert table.seconds is not None
    return fit_lane(lane, rows, table.seconds[chosen], facts, KINDS[table.family].axes)


def errors_of(lane: Lane, table: OperatorTable, chosen: Any, facts: OperatorFacts) -> tuple[Floats, Floats]:
    """Relative errors of the whole lane and of its core on the rows `chosen`."""
    rows = {column: values[chosen] for column, values in table.rows.items()}
    assert table.seconds is not None
    measured = table.seconds[chosen]
    whole, core = lane.seconds(rows, facts), lane.physical(rows, facts)
    return np.abs(whole / measured - 1.0), np.abs(core / measured - 1.0)


def fit_device(device: str, data: Path, golden: list[list[str]]) -> tuple[OperatorProfile, Errors]:
    folder, clock = DEVICES[device]
    facts = operator_facts(load_device(device), clock)
    native_fp8 = load_device(device).target.startswith("sm_90")
    lanes: dict[str, dict[str, LaneFit]] = {}
    errors: Errors = defaultdict(dict)
    for number, family in enumerate(KINDS):
        found = read_table(data / folder, family)
        if found is None:
            continue
        table, columns = found
        if table.seconds is None:
            raise SystemExit(f"{device} {family}: no latencies")
        keep = np.ones(len(table.lanes), bool)
        chosen = np.random.default_rng(100 + number).choice(len(keep), GOLDEN_ROWS, replace=False)
        keep[chosen] = False
        names = [*TEXTS[family], *NUMBERS[family], *(["window_size"] if "window_size" in columns else [])]
        for row in sorted(chosen.tolist()):
            shape = ";".join(f"{column}={columns[column][row]}" for column in names)
            golden.append([device, family, shape, repr(columns["latency"][row])])
        for name in map(str, np.unique(table.lanes)):
            of_lane = keep & (table.lanes == name)
            part = {column: values[of_lane] for column, values in table.rows.items()}
            for finding in lint(family, name, part, table.seconds[of_lane], facts):
                if finding.severity == "refuse":
                    raise SystemExit(f"{device} {family} {name}: {finding.text}; rows {finding.rows}")
            for split in ("rows", "shapes"):
                out = held_out(split, family, table)
                fit_on, test_on = of_lane & ~out, of_lane & out
                if fit_on.sum() >= FEW and test_on.any():
                    lane = fit_part(table, name, fit_on, facts, native_fp8)
                    errors[family, name][split], core = errors_of(lane, table, test_on, facts)
                    if split == "rows":
                        errors[family, name]["core"] = core
            lane = fit_part(table, name, of_lane, facts, native_fp8)
            seen = errors[family, name].get("rows")
            lanes.setdefault(family, {})[name] = LaneFit(
                parameters={
                    parameter.name: float(value)
                    for parameter, value in zip(lane.kind.parameters, lane.parameters, strict=True)
                },
                correction=tuple(grid.pack() for grid in lane.grids),
                rows=int(of_lane.sum()),
                held_out=None
                if seen is None
                else HeldOut(
                    rows=len(seen), p50=round(float(np.median(seen)), 4), p90=round(float(np.quantile(seen, 0.9)), 4)
                ),
            )
        print(f"{device} {family}: {len(table.lanes)} rows, held out {cell(errors, family, None, 'rows')}", flush=True)
    profile = OperatorProfile(
        device=device,
        clock_hz=clock,
        provenance=SOURCE,
        clock_source=CLOCK_SOURCE,
        licence="Apache-2.0",
        not_identified=NOT_IDENTIFIED,
        lanes=lanes,
    )
    return profile, dict(errors)


def cell(errors: Errors, family: str, group: str | None, split: str) -> str:
    """`median / p90` in percent over the lanes of a group (all of them where None); `-` without rows."""
    parts = [
        found[split]
        for (of, name), found in errors.items()
        if of == family and split in found and (group is None or grouped(family, name) == group)
    ]
    if not parts:
        return "-"
    every = np.concatenate(parts)
    return f"{100 * np.median(every):.1f} / {100 * np.quantile(every, 0.9):.1f}"


def grouped(family: str, lane: str) -> str:
    return lane.split("/")[0] if family in ("nccl", "custom_allreduce") else lane


def borrowed_cell(device: str, family: str, data: Path) -> str:
    """Errors of predictions for `device` that know only its datasheet and the fit of `LEFT_OUT`."""
    found = read_table(data / DEVICES[device][0], family)
    relative = LEFT_OUT[device]
    if found is None or family not in load_operator_profile(relative).lanes:
        return "-"
    table, _ = found
    assert table.seconds is not None
    known = np.isin(table.lanes, list(load_operator_profile(relative).lanes[family]))
    if not known.any():
        return "-"
    rows = {name: values[known] for name, values in table.rows.items()}
    part = OperatorTable(family, rows, table.lanes[known], table.seconds[known])
    seconds, _ = predict(part, borrowed_model(device, relative))
    error = np.abs(seconds / table.seconds[known] - 1.0)
    return f"{100 * np.median(error):.1f} / {100 * np.quantile(error, 0.9):.1f}"


HEAD = """# Accuracy of operator latencies

Written by `python -m benchmarks.fit_operators DATA -o specs/catalog/operators --accuracy docs/accuracy.md`; do not
edit. Figures are |predicted / measured - 1| in percent, median / p90, on the kernel tables of NVIDIA
aiconfigurator-core 0.12.0 (Apache-2.0). "Rows out": a random fifth of the rows was not in the fit. "Shapes out": a
fifth of whole shapes was not (widths of a GEMM, head configurations, MoE models, message sizes; of collectives that
is a handful of sizes, so those figures are chance). "Core": the physical formula without corrections, rows out.
Scatter plots are left out.

What these figures do not say. Knots, smoothness and lanes were chosen while looking at splits of the same tables,
so the figures are a little optimistic. The fit is not a few parameters: the median comes from the corrections, see
"core". One engine version per table; latencies are those of replayed launches with a warm L2 and locked clocks.
Times of block-scaled FP8 products hold host time of the measured engine. Prefill over a cached prefix is in no
table. Clocks of the devices were stated from memory. Not modelled yet: INT8, MLA bmm, expert all-to-all,
point-to-point, norms.
"""


def accuracy(every: dict[str, Errors], data: Path) -> str:
    lines = [HEAD, "| device | family | dtype (lane) | core | rows out | shapes out |", "|---|---|---|---|---|---|"]
    for device, errors in every.items():
        for family in KINDS:
            groups = list(dict.fromkeys(grouped(family, name) for of, name in errors if of == family))
            for group in [*groups, None] if len(groups) > 1 else groups:
                cells = [cell(errors, family, group, split) for split in ("core", "rows", "shapes")]
                lines.append(f"| {device} | {family} | {group or '**all**'} | {' | '.join(cells)} |")
    lines += [
        "",
        "## A device left out",
        "",
        "Known of the device: its datasheet. All else is borrowed from one relative: its corrections whole on the",
        "same architecture, half of them otherwise. Lanes that it lacks are not counted. The two Hopper devices are",
        "one die: their lines say nothing about a new architecture; those of A100 and L40S do.",
        "",
        f"| device | from | {' | '.join(KINDS)} |",
        f"|---|---|{'---|' * len(KINDS)}",
    ]
    for device in every:
        cells = [borrowed_cell(device, family, data) for family in KINDS]
        lines.append(f"| {device} | {LEFT_OUT[device]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--accuracy", type=Path, help="markdown file to write")
    parser.add_argument("--golden", type=Path, help="CSV of the rows kept out of every fit, to write")
    arguments = parser.parse_args()
    every: dict[str, Errors] = {}
    golden: list[list[str]] = []
    for device in DEVICES:
        profile, every[device] = fit_device(device, arguments.data, golden)
        path = arguments.output / f"{device}.json"
        profile.write(path)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB", flush=True)
    if arguments.golden:
        with arguments.golden.open("w", newline="", encoding="utf-8") as stream:
            stream.write(f"# {SOURCE}; columns reduced, values unchanged\n")
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["device", "family", "shape", "latency_ms"])
            writer.writerows(golden)
    if arguments.accuracy:
        write_atomically(arguments.accuracy, accuracy(every, arguments.data))


if __name__ == "__main__":
    main()
