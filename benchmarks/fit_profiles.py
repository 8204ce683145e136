"""Fit the device profiles of the catalogue to tables of measured kernels.

    python -m benchmarks.fit_profiles DATA_DIR -o specs/catalog/profiles [--operators specs/catalog/operators]

With --operators the operator latency model is fitted too, as `benchmarks.fit_operators` does (some minutes).

DATA_DIR holds DEVICE/FAMILY/ENGINE/VERSION/*.parquet as published with NVIDIA aiconfigurator-core 0.12.0
(Apache-2.0). Each parameter is fitted on 80 % of the rows (fixed seed) with the product's own formulas
(`planner/cost/table_fit.py`); the errors written into the profile are those on the other 20 %. Devices without tables
borrow the shares of their relative.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow.parquet as parquet

from benchmarks import fit_operators
from planner.cost.table_fit import SEED, profile_of_tables, quantiles_of
from planner.operators import OperatorTable, read_columns
from specs.catalog import load_device
from specs.document import DType
from specs.profile import DeviceFacts, DeviceProfile, StreamingPoint

SOURCE = "NVIDIA aiconfigurator-core 0.12.0 kernel tables (Apache-2.0, Copyright NVIDIA CORPORATION & AFFILIATES)"
MEASURED = {"a100-sxm": "a100_sxm", "h100-sxm": "h100_sxm", "h200-sxm": "h200_sxm", "l40s": "l40s"}
# Nearest relative, and the device whose collectives are nearest (the same kind of link)
RELATIVES = {
    "a100-pcie": ("a100-sxm", "l40s"),
    "a30": ("a100-sxm", "l40s"),
    "a10g": ("l40s", "l40s"),
    "l4": ("l40s", "l40s"),
    "rtx-4090": ("l40s", "l40s"),
    "rtx-pro-6000": ("l40s", "l40s"),
    "h100-pcie": ("h100-sxm", "l40s"),
    "b200": ("h200-sxm", "h200-sxm"),
    "b300": ("h200-sxm", "h200-sxm"),
    "gb200": ("h200-sxm", "h200-sxm"),
    "mi300x": ("h200-sxm", "h200-sxm"),
    "mi355x": ("h200-sxm", "h200-sxm"),
    "cpu": ("l40s", "l40s"),
}
# No table holds norms or activations. A plain copy on H200 reaches 0.90 of the peak counting reads and writes; norms
# and activations of a few MB do worse.
ELEMENTWISE_EFFICIENCY = 0.75
FAMILIES = ("gemm", "generation_attention", "context_attention", "moe", "custom_allreduce", "nccl")


def read_tables(folder: Path) -> dict[str, OperatorTable]:
    """The one table of every family under a device's folder, checked."""
    tables = {}
    for family in FAMILIES:
        paths = sorted(folder.glob(f"*/*/*/{family}_perf.parquet"))
        if len(paths) != 1:
            raise SystemExit(f"{folder}: expected one {family}_perf.parquet, found {len(paths)}")
        table = parquet.read_table(paths[0])
        columns = {name: table[name].to_pylist() for name in table.column_names}
        tables[family] = read_columns(columns, str(paths[0]))
    return tables


def draft(device: DeviceFacts) -> DeviceProfile:
    """What a fit starts from; only `elementwise_efficiency` and shares of types without tables stay."""
    every = dict.fromkeys(device.flops, 0.5)
    return DeviceProfile(
        device=device.name,
        confidence="measured",
        provenance="draft",
        licence="Apache-2.0",
        launch_s=2e-6,
        weight_streaming=(StreamingPoint(bytes=1.0, bytes_per_s=device.hbm_bytes_per_s),),
        compute_efficiency=every,
        gemm_ramp_tokens=dict.fromkeys(device.flops, 0.0),
        decode_attention_efficiency=dict.fromkeys(device.kv_dtypes, 0.5),
        decode_attention_launch_s=1e-5,
        decode_attention_row_s=0.0,
        prefill_attention_efficiency=0.5,
        prefill_attention_launch_s=1e-5,
        prefill_attention_ramp_tokens=0.0,
        moe_compute_efficiency=every,
        moe_memory_efficiency=0.5,
        moe_launch_s=2e-5,
        allreduce_latency_s={2: 1e-5},
        allreduce_efficiency={2: 0.5},
        elementwise_efficiency=ELEMENTWISE_EFFICIENCY,
    )


def fitted(device: DeviceFacts, folder: Path) -> DeviceProfile:
    """The profile of a device with tables."""
    profile, errors = profile_of_tables(read_tables(folder), device, draft(device))
    return profile.model_copy(
        update={
            "provenance": f"fitted by benchmarks/fit_profiles.py to {SOURCE}; 80 % of the rows, seed {SEED}; "
            "error_quantiles are relative errors of single kernels on the other 20 %; elementwise_efficiency and the "
            "shares of types without tables are assumptions",
            "error_quantiles": quantiles_of(errors),
        }
    )


def borrowed(device: DeviceFacts, relative: DeviceProfile, links: DeviceProfile) -> DeviceProfile:
    """The relative's floors and shares on this device's peaks. Streaming sizes scale with the bandwidth, so that the
    curve bends at the same time rather than at the same bytes."""
    scale = device.hbm_bytes_per_s / load_device(relative.device).hbm_bytes_per_s
    curve = [
        {"bytes": round(point.bytes * scale), "bytes_per_s": float(f"{point.bytes_per_s * scale:.4g}")}
        for point in relative.weight_streaming
    ]

    def shares(known: dict[DType, float]) -> dict[DType, float]:
        eight_bit = known.get(DType.FP8, known[DType.BF16])
        return {dtype: known.get(dtype, eight_bit if dtype.bytes <= 1 else known[DType.BF16]) for dtype in device.flops}

    return DeviceProfile.model_validate(
        {
            **relative.model_dump(),
            "device": device.name,
            "confidence": "borrowed",
            "relative_of": relative.device,
            "provenance": f"not measured: floors and shares of {relative.device} (collectives of {links.device}) on "
            f"the peaks of {device.name}; error_quantiles are the relative's own; {relative.provenance}",
            "weight_streaming": curve,
            "compute_efficiency": shares(relative.compute_efficiency),
            "gemm_ramp_tokens": shares(relative.gemm_ramp_tokens),
            "moe_compute_efficiency": shares(relative.moe_compute_efficiency),
            "allreduce_latency_s": links.allreduce_latency_s,
            "allreduce_efficiency": links.allreduce_efficiency,
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--operators", type=Path, help="also fit the operator latencies, into this folder")
    arguments = parser.parse_args()
    profiles: dict[str, DeviceProfile] = {}
    for name, folder in MEASURED.items():
        profiles[name] = fitted(load_device(name), arguments.data / folder)
        print(name, profiles[name].error_quantiles)
    for name, (relative, links) in RELATIVES.items():
        profiles[name] = borrowed(load_device(name), profiles[relative], profiles[links])
    for name, profile in profiles.items():
        profile.write(arguments.output / f"{name}.json")
    if arguments.operators:
        fit_operators.run(arguments.data, arguments.operators)


if __name__ == "__main__":
    main()
