"""Fit the device profiles of the catalogue to tables of measured kernels.

    python -m benchmarks.fit_profiles DATA_DIR -o specs/catalog/profiles

DATA_DIR holds DEVICE/FAMILY/ENGINE/VERSION/*.parquet as published with NVIDIA aiconfigurator-core 0.12.0
(Apache-2.0). Each parameter is fitted on 80 % of the rows (fixed seed) with the product's own formulas; the errors
written into the profile are those on the other 20 %. Devices without tables borrow the shares of their relative.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet

from planner.cost.collectives import all_reduce_s
from planner.cost.moe import experts_s
from planner.cost.roofline import Floats, gemm_s
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
SEED = 20260101
Table = dict[str, Any]


def read_table(folder: Path, name: str) -> Table:
    """Columns of the one table `name` under `folder` as arrays; latency in seconds."""
    paths = sorted(folder.glob(f"*/*/{name}_perf.parquet"))
    if len(paths) != 1:
        raise SystemExit(f"{folder}: expected one {name}_perf.parquet, found {len(paths)}")
    table = parquet.read_table(paths[0])
    columns = {key: np.array(table[key].to_pylist()) for key in table.column_names if not key.startswith("__")}
    columns["seconds"] = columns["latency"].astype(float) / 1e3
    return columns


def choose(table: Table, rows: Any) -> Table:
    return {key: column[rows] for key, column in table.items()}


def split(table: Table) -> tuple[Table, Table]:
    """(80 % to fit, 20 % held out), the same rows every time."""
    held = np.random.default_rng(SEED).random(len(table["seconds"])) < 0.2
    return choose(table, ~held), choose(table, held)


def relative_errors(predicted: Floats, measured: Floats) -> Floats:
    errors: Floats = np.abs(predicted / measured - 1.0)
    return errors


def best(candidates: list[Any], score: Callable[[Any], float]) -> Any:
    return min(candidates, key=score)


class Fit:
    """One device's fit: a draft profile that each family refines, and the held-out errors by family."""

    def __init__(self, device: DeviceFacts, folder: Path) -> None:
        self.device, self.folder = device, folder
        self.errors: dict[str, Floats] = {}
        every = dict.fromkeys(device.flops, 0.5)
        self.profile = DeviceProfile(
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

    def update(self, **values: Any) -> None:
        self.profile = DeviceProfile.model_validate({**self.profile.model_dump(), **values})

    # -- matrix products ------------------------------------------------------------------------------------------

    def gemm(self) -> None:
        train, held = split(read_table(self.folder / "gemm", "gemm"))
        self._launch(train)
        self._streaming(train)
        for name, dtype in (("bfloat16", DType.BF16), ("fp8", DType.FP8)):
            rows = choose(
                train, (train["gemm_dtype"] == name) & (train["m"] >= 16) & (train["n"] * train["k"] >= 2**22)
            )
            if not len(rows["seconds"]):
                continue
            self._compute(dtype, rows)
            test = choose(held, held["gemm_dtype"] == name)
            self.errors[f"gemm_{dtype.value}"] = self._gemm_errors(dtype, test)
            large = choose(test, test["n"] * test["k"] >= 2**22)
            self.errors[f"gemm_{dtype.value}_from_4M_weights"] = self._gemm_errors(dtype, large)
        shares, ramps = dict(self.profile.compute_efficiency), dict(self.profile.gemm_ramp_tokens)
        eight_bit = DType.FP8 if DType.FP8 in self.device.flops else DType.BF16
        for dtype in shares:  # what no table holds takes the share of its nearest kind
            if dtype in (DType.FP16, DType.FP32):
                shares[dtype], ramps[dtype] = shares[DType.BF16], ramps[DType.BF16]
            elif dtype in (DType.INT8, DType.FP4):
                shares[dtype], ramps[dtype] = shares[eight_bit], ramps[eight_bit]
        self.update(compute_efficiency=shares, gemm_ramp_tokens=ramps)

    def _gemm_errors(self, dtype: DType, rows: Table) -> Floats:
        inputs = (rows[key].astype(float) for key in ("m", "k", "n"))
        return relative_errors(gemm_s(*inputs, dtype, self.device, self.profile), rows["seconds"])

    def _launch(self, train: Table) -> None:
        tiny = (train["gemm_dtype"] == "bfloat16") & (train["m"] <= 4) & (train["n"] * train["k"] <= 2**16)
        self.update(launch_s=round(float(np.median(train["seconds"][tiny])), 8))

    def _streaming(self, train: Table) -> None:
        """Bandwidth by octaves of weight bytes, launch taken out.

        The tables replay one matrix without flushing the cache, so matrices smaller than L2 come from it; between two
        uses in serving a whole model passes through. No point may therefore beat the plateau that matrices of at
        least four times L2 reach; and bandwidth never falls with size, nor does time.
        """
        points: dict[float, list[float]] = {}
        for name, element, launches in (("bfloat16", 2.0, 1), ("fp8", 1.0, 2)):
            rows = choose(train, (train["gemm_dtype"] == name) & (train["m"] <= 8))
            sizes = rows["n"].astype(float) * rows["k"] * element
            moving = np.maximum(rows["seconds"] - launches * self.profile.launch_s, 0.1e-6)
            for exponent in range(19, 31):
                inside = (sizes >= 2.0**exponent) & (sizes < 2.0 ** (exponent + 1))
                if inside.sum() >= 20:
                    rate = float(np.median(sizes[inside] / moving[inside]))
                    points.setdefault(2.0 ** (exponent + 0.5), []).append(rate)
        rates = {size: float(np.mean(values)) for size, values in points.items()}
        plateau = max(rate for size, rate in rates.items() if size >= 4 * self.device.l2_bytes or size == max(rates))
        plateau = min(plateau, 0.95 * self.device.hbm_bytes_per_s)
        sizes_sorted = sorted(rates)
        capped = np.maximum.accumulate([min(rates[size], plateau) for size in sizes_sorted])
        curve = zip(sizes_sorted, capped, strict=True)
        self.update(
            weight_streaming=[{"bytes": round(size), "bytes_per_s": float(f"{rate:.4g}")} for size, rate in curve]
        )

    def _compute(self, dtype: DType, rows: Table) -> None:
        rows = choose(rows, np.random.default_rng(SEED).permutation(len(rows["seconds"]))[:6000])

        def score(pair: tuple[float, float]) -> float:
            share, ramp = pair
            self.update(
                compute_efficiency={**self.profile.compute_efficiency, dtype: share},
                gemm_ramp_tokens={**self.profile.gemm_ramp_tokens, dtype: ramp},
            )
            return float(np.mean(self._gemm_errors(dtype, rows)))

        grid = [(share / 100, float(ramp)) for share in range(30, 97, 2) for ramp in range(0, 257, 16)]
        score(best(grid, score))

    # -- attention ------------------------------------------------------------------------------------------------

    def decode_attention(self) -> None:
        train, held = split(full_attention(read_table(self.folder / "attention", "generation_attention")))
        fit = choose(train, (train["kv_cache_dtype"] == "bfloat16") & (train["head_dim"] == 128))
        tiny = (fit["batch_size"] <= 8) & (decode_bytes(fit) < 1e6)
        self.update(decode_attention_launch_s=round(float(np.median(fit["seconds"][tiny])), 8))
        # contexts that L2 cannot hold: between two steps of serving, weights and other layers pass through it
        cold = choose(train, (decode_bytes(train) > 2 * self.device.l2_bytes) & (train["head_dim"] == 128))
        cold = choose(cold, cold["isl"] + cold["step"] >= 256)

        def score(pair: tuple[float, float], kv_dtype: DType = DType.BF16, rows: Table | None = None) -> float:
            shares = {**self.profile.decode_attention_efficiency, kv_dtype: pair[0]}
            self.update(decode_attention_efficiency=shares, decode_attention_row_s=pair[1])
            rows = choose(cold, cold["kv_cache_dtype"] == "bfloat16") if rows is None else rows
            return float(np.mean(relative_errors(self._decode_s(rows), rows["seconds"])))

        row_costs = (0.0, 1e-9, 2e-9, 5e-9, 1e-8, 1.5e-8, 2e-8, 3e-8)
        percent = [share / 100 for share in range(40, 96)]
        score(best([(share, row) for share in percent for row in row_costs], score))
        shares, row_s = dict(self.profile.decode_attention_efficiency), self.profile.decode_attention_row_s
        eight = choose(cold, cold["kv_cache_dtype"] == "fp8")
        if len(eight["seconds"]):
            share = best(percent, lambda share: score((share, row_s), DType.FP8, eight))
        else:
            share = shares[DType.BF16]  # no table: as 16 bit, per byte
        self.update(decode_attention_efficiency={**dict.fromkeys(shares, shares[DType.BF16]), DType.FP8: share})
        for name, kv_dtype in (("bfloat16", "bf16"), ("fp8", "fp8")):
            test = choose(held, held["kv_cache_dtype"] == name)
            if len(test["seconds"]):
                errors = relative_errors(self._decode_s(test), test["seconds"])
                self.errors[f"decode_attention_{kv_dtype}_kv"] = errors
                self.errors[f"decode_attention_{kv_dtype}_kv_from_2x_L2"] = errors[
                    decode_bytes(test) > 2 * self.device.l2_bytes
                ]

    def _decode_s(self, rows: Table) -> Floats:
        profile, shares = self.profile, self.profile.decode_attention_efficiency
        share = np.where(rows["kv_cache_dtype"] == "fp8", shares[DType.FP8], shares[DType.BF16])
        reading = decode_bytes(rows) / (self.device.hbm_bytes_per_s * share)
        by_row = profile.decode_attention_row_s * rows["batch_size"] * rows["num_key_value_heads"]
        seconds: Floats = profile.decode_attention_launch_s + reading + by_row
        return seconds

    def prefill_attention(self) -> None:
        train, held = split(full_attention(read_table(self.folder / "attention", "context_attention")))
        fit = choose(train, (train["kv_cache_dtype"] == "bfloat16") & (train["head_dim"] == 128))
        short = (fit["isl"] <= 128) & (fit["batch_size"] == 1)
        self.update(prefill_attention_launch_s=round(float(np.median(fit["seconds"][short])), 8))
        usual = choose(fit, (fit["isl"] >= 256) & (fit["num_heads"] >= 4))

        def score(pair: tuple[float, float]) -> float:
            self.update(prefill_attention_efficiency=pair[0], prefill_attention_ramp_tokens=pair[1])
            return float(np.mean(relative_errors(self._prefill_s(usual), usual["seconds"])))

        grid = [(share / 100, float(ramp)) for share in range(30, 90, 2) for ramp in range(0, 2001, 100)]
        score(best(grid, score))
        for name, kv_dtype in (("bfloat16", "bf16"), ("fp8", "fp8")):
            test = choose(held, held["kv_cache_dtype"] == name)
            if len(test["seconds"]):
                errors = relative_errors(self._prefill_s(test), test["seconds"])
                self.errors[f"prefill_attention_{kv_dtype}_kv"] = errors

    def _prefill_s(self, rows: Table) -> Floats:
        profile, tokens = self.profile, rows["isl"].astype(float)
        pairs = tokens * (tokens + 1) / 2 + tokens * profile.prefill_attention_ramp_tokens / 2
        operations = 4.0 * rows["head_dim"] * rows["num_heads"] * pairs * rows["batch_size"]
        rate = self.device.flops[DType.BF16] * profile.prefill_attention_efficiency
        seconds: Floats = profile.prefill_attention_launch_s + operations / rate
        return seconds

    # -- experts --------------------------------------------------------------------------------------------------

    def moe(self) -> None:
        table = read_table(self.folder / "moe", "moe")
        table = choose(table, (table["moe_ep_size"] == 1) & (table["distribution"] != "power_law_1.2"))
        train, held = split(table)
        # fp8: the block-scaled kernels; the per-tensor ones of the H100 and H200 tables are slower than bf16
        names = (("bfloat16", DType.BF16), ("fp8_block", DType.FP8))
        few = (train["moe_dtype"] == "bfloat16") & (train["num_tokens"] <= 2)
        smallest = np.quantile(train["seconds"][few], 0.02)  # the floor: the smallest experts, one or two tokens
        self.update(moe_launch_s=round(float(smallest), 7))
        rows = choose(train, train["moe_dtype"] == "bfloat16")

        def score(pair: tuple[float, float]) -> float:
            shares = {**self.profile.moe_compute_efficiency, DType.BF16: pair[0]}
            self.update(moe_compute_efficiency=shares, moe_memory_efficiency=pair[1])
            return float(np.mean(self._moe_errors(DType.BF16, rows)))

        score(best([(c / 100, m / 100) for c in range(20, 92, 6) for m in range(30, 96, 5)], score))
        shares = dict(self.profile.moe_compute_efficiency)
        for name, dtype in names:
            rows = choose(train, train["moe_dtype"] == name)
            if dtype is not DType.BF16 and len(rows["seconds"]):
                shares = self._moe_compute(dtype, rows)
            test = choose(held, held["moe_dtype"] == name)
            if len(test["seconds"]):
                self.errors[f"moe_{dtype.value}"] = self._moe_errors(dtype, test)
        eight_bit = DType.FP8 if DType.FP8 in self.device.flops else DType.BF16
        for dtype in shares:
            if dtype in (DType.FP16, DType.FP32):
                shares[dtype] = shares[DType.BF16]
            elif dtype in (DType.INT8, DType.FP4):
                shares[dtype] = shares[eight_bit]
        self.update(moe_compute_efficiency=shares)

    def _moe_compute(self, dtype: DType, rows: Table) -> dict[DType, float]:
        def score(share: float) -> float:
            self.update(moe_compute_efficiency={**self.profile.moe_compute_efficiency, dtype: share})
            return float(np.mean(self._moe_errors(dtype, rows)))

        score(best([share / 100 for share in range(14, 92, 3)], score))
        return dict(self.profile.moe_compute_efficiency)

    def _moe_errors(self, dtype: DType, rows: Table) -> Floats:
        """Rows of equal shape are predicted together: the formula is vectorised over tokens."""
        shapes = np.stack([rows[key] for key in ("num_experts", "topk", "hidden_size", "inter_size", "moe_tp_size")])
        keys, index = np.unique(shapes, axis=1, return_inverse=True)
        predicted = np.zeros(len(rows["seconds"]))
        for number, (experts, topk, hidden, inner, ranks) in enumerate(keys.T):
            here = np.ravel(index) == number
            tokens = rows["num_tokens"][here].astype(float)
            shape = (int(experts), int(topk), int(hidden), float(inner) / float(ranks))
            predicted[here] = experts_s(tokens, *shape, True, dtype, self.device, self.profile)
        return relative_errors(predicted, rows["seconds"])

    # -- collectives ----------------------------------------------------------------------------------------------

    def collectives(self) -> None:
        custom = read_table(self.folder / "comm", "custom_allreduce")
        custom = choose(custom, custom["kernel_source"] == "vLLM_custom_graph")
        nccl = read_table(self.folder / "comm", "nccl")
        nccl = choose(nccl, (nccl["op_name"] == "all_reduce") & (nccl["nccl_dtype"] == "half"))
        latency: dict[int, float] = {}
        efficiency: dict[int, float] = {}
        for ranks in (2, 4, 8):
            mine = choose(custom, custom["num_gpus"] == ranks)
            latency[ranks] = round(float(np.median(mine["seconds"][mine["message_size"] <= 2**14])), 8)
            shares = []
            for table in (mine, choose(nccl, nccl["num_gpus"] == ranks)):
                large = choose(table, (table["message_size"] >= 2**21) & (table["message_size"] <= 2**26))
                moved = 2.0 * (ranks - 1) / ranks * 2.0 * large["message_size"]
                share = moved / (large["seconds"] - latency[ranks]) / self.device.link_bytes_per_s
                shares.append(float(np.median(share)))
            efficiency[ranks] = float(f"{min(max(shares), 1.0):.3g}")
        self.update(allreduce_latency_s=latency, allreduce_efficiency=efficiency)
        message = 2.0 * custom["message_size"]
        predicted = np.array(
            [
                float(all_reduce_s(size, int(ranks), self.device, self.profile))
                for size, ranks in zip(message, custom["num_gpus"], strict=True)
            ]
        )
        usual = custom["message_size"] <= 2**26
        self.errors["all_reduce_not_held_out"] = relative_errors(predicted, custom["seconds"])[usual]

    # -- the document ---------------------------------------------------------------------------------------------

    def finish(self) -> DeviceProfile:
        quantiles: dict[str, float] = {}
        pooled = [errors for name, errors in self.errors.items() if "from" not in name and "not_held" not in name]
        for quantile in (50, 90):
            # families weigh the same, however many rows each has
            values = [float(np.quantile(errors, quantile / 100)) for errors in pooled]
            quantiles[f"p{quantile}"] = round(float(np.mean(values)), 3)
        for name, errors in sorted(self.errors.items()):
            for quantile in (50, 90):
                quantiles[f"{name}_p{quantile}"] = round(float(np.quantile(errors, quantile / 100)), 3)
        self.update(
            provenance=f"fitted by benchmarks/fit_profiles.py to {SOURCE}; 80 % of the rows, seed {SEED}; "
            "error_quantiles are relative errors of single kernels on the other 20 %; elementwise_efficiency and the "
            "shares of types without tables are assumptions",
            error_quantiles=quantiles,
        )
        return self.profile


def full_attention(table: Table) -> Table:
    """Rows without a window; the A100 tables have no such column and no windows."""
    return choose(table, table["window_size"] == 0) if "window_size" in table else table


def decode_bytes(rows: Table) -> Floats:
    """KV bytes read by one decode step of the whole batch; the KV length is isl + step."""
    element = np.where(rows["kv_cache_dtype"] == "fp8", 1.0, 2.0)
    length = (rows["isl"] + rows["step"]).astype(float)
    read: Floats = rows["batch_size"] * length * 2.0 * rows["num_key_value_heads"] * rows["head_dim"] * element
    return read


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
    arguments = parser.parse_args()
    profiles: dict[str, DeviceProfile] = {}
    for name, folder in MEASURED.items():
        fit = Fit(load_device(name), arguments.data / folder)
        for step in (fit.gemm, fit.decode_attention, fit.prefill_attention, fit.moe, fit.collectives):
            step()
        profiles[name] = fit.finish()
        print(name, profiles[name].error_quantiles)
    for name, (relative, links) in RELATIVES.items():
        profiles[name] = borrowed(load_device(name), profiles[relative], profiles[links])
    for name, profile in profiles.items():
        profile.write(arguments.output / f"{name}.json")


if __name__ == "__main__":
    main()
