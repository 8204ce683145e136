"""Fit the operator latency profiles of the catalogue to tables of measured kernels; write their accuracy.

    python -m benchmarks.fit_operators DATA -o specs/catalog/operators [--accuracy docs/accuracy.md] [--golden FILE]

DATA holds DEVICE/FAMILY/ENGINE/VERSION/*_perf.parquet as published with NVIDIA aiconfigurator-core 0.12.0
(Apache-2.0). Rerunnable: same tables, same bytes. Ten golden rows per device and family are kept out of every
fit. Beside the measured devices' profiles, the joint fits for devices without measurements are written.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from benchmarks.operator_accuracy import accuracy, left_out
from benchmarks.operator_tables import DEVICES, SOURCE, golden_rows, golden_shape, read_tables, without
from planner.operators import OperatorProfile, OperatorTable, check_table, load_operator_profile
from planner.operators.calibrate import fit_checked_tables, measured
from planner.operators.cores import operator_facts
from planner.operators.datasheet import fit_datasheet_profile
from planner.operators.fingerprint import pack_rows
from specs.catalog import load_device
from specs.document import write_atomically

LICENCE = "Apache-2.0"
UNMEASURED = {"warp": "rtx-pro-6000", "warp_group": "b200"}  # generation -> a device whose link its devices have


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--accuracy", type=Path, help="markdown file to write; scatter plots go beside it")
    parser.add_argument("--golden", type=Path, help="CSV of the rows kept out of every fit, to write")
    arguments = parser.parse_args()
    run(arguments.data, arguments.output, arguments.accuracy, arguments.golden)


def run(data: Path, output: Path, accuracy_page: Path | None = None, golden_rows_file: Path | None = None) -> None:
    """Fit every device and the joint models into `output`; write the page and the golden rows where asked."""
    golden: list[list[str]] = []
    tables: dict[str, dict[str, OperatorTable]] = {}
    for device in DEVICES:
        tables[device] = {}
        for family, (table, columns) in read_tables(data, device).items():
            rows = golden_rows(family, len(table.lanes))
            golden += [
                [device, family, golden_shape(family, columns, row), repr(columns["latency"][row])] for row in rows
            ]
            tables[device][family] = without(table, rows)
    write_profiles(tables, output)
    check(tables)
    if golden_rows_file:
        write_golden(golden, golden_rows_file)
    if accuracy_page:
        write_atomically(accuracy_page, accuracy(tables, accuracy_page.with_suffix("")))


def write_profiles(tables: dict[str, dict[str, OperatorTable]], output: Path) -> None:
    lists = {device: list(of.values()) for device, of in tables.items()}
    for device, of in lists.items():
        profile = fit_checked_tables(of, operator_facts(load_device(device)), SOURCE, LICENCE)
        with_samples(profile, tables[device]).write(output / f"{device}.json")
        print(f"{device}: {(output / device).with_suffix('.json').stat().st_size / 1e3:.0f} kB", flush=True)
    load_operator_profile.cache_clear()
    for generation, like in UNMEASURED.items():
        profile = fit_datasheet_profile(lists, operator_facts(load_device(like)), SOURCE, LICENCE)
        profile = profile.model_copy(update={"left_out": left_out(tables, generation)})
        (output / "datasheet").mkdir(exist_ok=True)
        profile.write(output / "datasheet" / f"{generation}.json")
        size = (output / "datasheet" / generation).with_suffix(".json").stat().st_size
        print(f"{generation}: {size / 1e3:.0f} kB", flush=True)


def with_samples(profile: OperatorProfile, tables: dict[str, OperatorTable]) -> OperatorProfile:
    """The profile with a few rows of every lane, by which copies of these tables are known."""
    lanes = {
        family: {
            name: fit.model_copy(update={"sample": pack_rows(*measured(tables[family], tables[family].lanes == name))})
            for name, fit in of.items()
        }
        for family, of in profile.lanes.items()
    }
    return profile.model_copy(update={"lanes": lanes})


def check(tables: dict[str, dict[str, OperatorTable]]) -> None:
    """Refuse tables that are no measurements of their device, by the profiles just written and by one another."""
    for device, of in tables.items():
        for family, table in of.items():
            others = {other: tables[other][family] for other in tables if other != device and family in tables[other]}
            for finding in check_table(table, operator_facts(load_device(device)), others):
                if finding.severity == "refuse":
                    raise SystemExit(f"{device} {finding.text}; rows {finding.rows}")


def write_golden(golden: list[list[str]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        stream.write(f"# {SOURCE}; columns reduced, values unchanged\n")
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["device", "family", "shape", "latency_ms"])
        writer.writerows(golden)


if __name__ == "__main__":
    main()
