"""From kernel tables to a `DeviceProfile`: each parameter on 80 % of the rows, errors on the other 20 % (fixed seed).

Tables are those that `planner.operators.read_columns` checked. Parameters whose rows a device's tables do not hold stay
those of the profile that the fit starts from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from planner.cost.collectives import all_reduce_s
from planner.cost.moe import experts_s
from planner.cost.roofline import Floats, gemm_s
from planner.operators.tables import OperatorTable
from specs.document import DType
from specs.profile import DeviceFacts, DeviceProfile

SEED = 20260101
OCTAVE_ROWS = 20  # of weights of similar size, before they give a point of the streaming curve
MOST_COMPUTE_ROWS = 6000  # of matrix products that shares of the peak are sought on: more do not change them
ELEMENTS = {DType.BF16: ("bfloat16", 2.0), DType.FP8: ("fp8", 1.0)}  # name in the tables, bytes
Table = dict[str, Any]  # columns of one family, `seconds` and the two parts of the lane among them
Mask = NDArray[np.bool_]
Candidate = TypeVar("Candidate")


def profile_of_tables(
    tables: Mapping[str, OperatorTable],
    device: DeviceFacts,
    base: DeviceProfile,
    octave_rows: int = OCTAVE_ROWS,
    progress: Callable[[str], None] = lambda family: None,
) -> tuple[DeviceProfile, dict[str, Floats]]:
    """(`base` with everything that `tables` (family -> table with latencies) show replaced, relative errors by kind).

    `octave_rows`: least rows of one octave of weight sizes; designed measurements need fewer than random ones.
    """
    fit = _Fit(device, base, octave_rows)
    columns = {family: _columns(table) for family, table in tables.items()}
    steps: dict[str, Callable[[Table], None]] = {
        "gemm": fit.gemm,
        "generation_attention": fit.decode_attention,
        "context_attention": fit.prefill_attention,
        "moe": fit.moe,
    }
    for family, step in steps.items():
        if family in columns:
            progress(family)
            step(columns[family])
    if "custom_allreduce" in columns or "nccl" in columns:
        progress("collectives")
        fit.collectives(columns.get("custom_allreduce"), columns.get("nccl"))
    return fit.profile, fit.errors


def quantiles_of(errors: Mapping[str, Floats]) -> dict[str, float]:
    """`p50` and `p90` over families, each weighing the same however many rows it has, then those of every kind."""
    quantiles: dict[str, float] = {}
    pooled = [errors for name, errors in errors.items() if "from" not in name and "not_held" not in name]
    for quantile in (50, 90):
        if pooled:
            values = [float(np.quantile(part, quantile / 100)) for part in pooled]
            quantiles[f"p{quantile}"] = round(float(np.mean(values)), 3)
    for name, part in sorted(errors.items()):
        for quantile in (50, 90):
            quantiles[f"{name}_p{quantile}"] = round(float(np.quantile(part, quantile / 100)), 3)
    return quantiles


def _columns(table: OperatorTable) -> Table:
    if table.seconds is None:
        raise ValueError(f"the {table.family} table has no latencies")
    parts = [lane.partition("/") for lane in table.lanes.tolist()]
    first, second = (np.array([part[place] for part in parts]) for place in (0, 2))
    return {**table.rows, "seconds": table.seconds, "first": first, "second": second}


def _choose(table: Table, rows: Mask) -> Table:
    return {key: column[rows] for key, column in table.items()}


def _split(table: Table) -> tuple[Table, Table]:
    """(80 % to fit, 20 % held out), the same rows every time."""
    held = np.random.default_rng(SEED).random(len(table["seconds"])) < 0.2
    return _choose(table, ~held), _choose(table, held)


def _relative_errors(predicted: Floats, measured: Floats) -> Floats:
    errors: Floats = np.abs(predicted / measured - 1.0)
    return errors


def _best(candidates: Sequence[Candidate], score: Callable[[Candidate], float]) -> Candidate:
    return min(candidates, key=score)


def _full(table: Table) -> Table:
    return _choose(table, table["second"] == "full")


def _decode_bytes(rows: Table) -> Floats:
    """KV bytes read by one decode step of the whole batch."""
    element = np.where(rows["first"] == "fp8", 1.0, 2.0)
    read: Floats = rows["batch"] * rows["keys"] * 2.0 * rows["kv_heads"] * rows["head_dim"] * element
    return read


class _Fit:
    """A draft profile that each family refines, and the held-out errors by kind of kernel."""

    def __init__(self, device: DeviceFacts, base: DeviceProfile, octave_rows: int) -> None:
        self.device, self.profile, self.octave_rows = device, base, octave_rows
        self.errors: dict[str, Floats] = {}

    def update(self, **values: Any) -> None:
        self.profile = DeviceProfile.model_validate({**self.profile.model_dump(), **values})

    @property
    def eight_bit(self) -> DType:
        """Whose shares the types below 16 bit take where no table holds them."""
        return DType.FP8 if DType.FP8 in self.device.flops else DType.BF16

    # -- matrix products ------------------------------------------------------------------------------------------

    def gemm(self, table: Table) -> None:
        train, held = _split(table)
        tiny = (train["first"] == "bfloat16") & (train["m"] <= 4) & (train["n"] * train["k"] <= 2**16)
        if tiny.any():
            self.update(launch_s=round(float(np.median(train["seconds"][tiny])), 8))
        self._streaming(train)
        for dtype, (name, _) in ELEMENTS.items():
            large = (train["m"] >= 16) & (train["n"] * train["k"] >= 2**22)
            rows = _choose(train, (train["first"] == name) & large)
            if not len(rows["seconds"]):
                continue
            self._compute(dtype, rows)
            test = _choose(held, held["first"] == name)
            self._note(f"gemm_{dtype.value}", self._gemm_errors(dtype, test))
            test = _choose(test, test["n"] * test["k"] >= 2**22)
            self._note(f"gemm_{dtype.value}_from_4M_weights", self._gemm_errors(dtype, test))
        shares, ramps = dict(self.profile.compute_efficiency), dict(self.profile.gemm_ramp_tokens)
        for dtype in shares:  # what no table holds takes the share of its nearest kind
            if dtype in (DType.FP16, DType.FP32):
                shares[dtype], ramps[dtype] = shares[DType.BF16], ramps[DType.BF16]
            elif dtype in (DType.INT8, DType.FP4):
                shares[dtype], ramps[dtype] = shares[self.eight_bit], ramps[self.eight_bit]
        self.update(compute_efficiency=shares, gemm_ramp_tokens=ramps)

    def _note(self, name: str, errors: Floats) -> None:
        if len(errors):
            self.errors[name] = errors

    def _gemm_errors(self, dtype: DType, rows: Table) -> Floats:
        predicted = gemm_s(rows["m"], rows["k"], rows["n"], dtype, self.device, self.profile)
        return _relative_errors(predicted, rows["seconds"])

    def _streaming(self, train: Table) -> None:
        """Bandwidth by octaves of weight bytes, launch taken out.

        The published tables replay one matrix without flushing the cache, so matrices smaller than L2 come from it;
        between two uses in serving a whole model passes through. No point may therefore beat the plateau that matrices
        of at least four times L2 reach; and bandwidth never falls with size, nor does time.
        """
        points: dict[float, list[float]] = {}
        for (name, element), launches in zip(ELEMENTS.values(), (1, 2), strict=True):
            rows = _choose(train, (train["first"] == name) & (train["m"] <= 8))
            sizes = rows["n"] * rows["k"] * element
            moving = np.maximum(rows["seconds"] - launches * self.profile.launch_s, 0.1e-6)
            for exponent in range(19, 31):
                inside = (sizes >= 2.0**exponent) & (sizes < 2.0 ** (exponent + 1))
                if inside.sum() >= self.octave_rows:
                    rate = float(np.median(sizes[inside] / moving[inside]))
                    points.setdefault(2.0 ** (exponent + 0.5), []).append(rate)
        if not points:
            return
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
        few = np.random.default_rng(SEED).permutation(len(rows["seconds"]))[:MOST_COMPUTE_ROWS]
        rows = {key: column[few] for key, column in rows.items()}

        def score(pair: tuple[float, float]) -> float:
            share, ramp = pair
            self.update(
                compute_efficiency={**self.profile.compute_efficiency, dtype: share},
                gemm_ramp_tokens={**self.profile.gemm_ramp_tokens, dtype: ramp},
            )
            return float(np.mean(self._gemm_errors(dtype, rows)))

        grid = [(share / 100, float(ramp)) for share in range(30, 97, 2) for ramp in range(0, 257, 16)]
        score(_best(grid, score))

    # -- attention ------------------------------------------------------------------------------------------------

    def decode_attention(self, table: Table) -> None:
        train, held = _split(_full(table))
        fit = _choose(train, (train["first"] == "bfloat16") & (train["head_dim"] == 128))
        tiny = (fit["batch"] <= 8) & (_decode_bytes(fit) < 1e6)
        if tiny.any():
            self.update(decode_attention_launch_s=round(float(np.median(fit["seconds"][tiny])), 8))
        # contexts that L2 cannot hold: between two steps of serving, weights and other layers pass through it
        cold = _choose(train, (_decode_bytes(train) > 2 * self.device.l2_bytes) & (train["head_dim"] == 128))
        cold = _choose(cold, cold["keys"] >= 256)
        wide = _choose(cold, cold["first"] == "bfloat16")
        if not len(wide["seconds"]):
            return

        def score(pair: tuple[float, float], kv_dtype: DType = DType.BF16, rows: Table = wide) -> float:
            shares = {**self.profile.decode_attention_efficiency, kv_dtype: pair[0]}
            self.update(decode_attention_efficiency=shares, decode_attention_row_s=pair[1])
            return float(np.mean(_relative_errors(self._decode_s(rows), rows["seconds"])))

        row_costs = (0.0, 1e-9, 2e-9, 5e-9, 1e-8, 1.5e-8, 2e-8, 3e-8)
        percent = [share / 100 for share in range(40, 96)]
        score(_best([(share, row) for share in percent for row in row_costs], score))
        shares, row_s = dict(self.profile.decode_attention_efficiency), self.profile.decode_attention_row_s
        eight = _choose(cold, cold["first"] == "fp8")
        if len(eight["seconds"]):
            share = _best(percent, lambda share: score((share, row_s), DType.FP8, eight))
        else:
            share = shares[DType.BF16]  # no table: as 16 bit, per byte
        self.update(decode_attention_efficiency={**dict.fromkeys(shares, shares[DType.BF16]), DType.FP8: share})
        for dtype, (name, _) in ELEMENTS.items():
            test = _choose(held, held["first"] == name)
            errors = _relative_errors(self._decode_s(test), test["seconds"])
            self._note(f"decode_attention_{dtype.value}_kv", errors)
            beyond = _decode_bytes(test) > 2 * self.device.l2_bytes
            self._note(f"decode_attention_{dtype.value}_kv_from_2x_L2", errors[beyond])

    def _decode_s(self, rows: Table) -> Floats:
        profile, shares = self.profile, self.profile.decode_attention_efficiency
        share = np.where(rows["first"] == "fp8", shares.get(DType.FP8, shares[DType.BF16]), shares[DType.BF16])
        reading = _decode_bytes(rows) / (self.device.hbm_bytes_per_s * share)
        by_row = profile.decode_attention_row_s * rows["batch"] * rows["kv_heads"]
        seconds: Floats = profile.decode_attention_launch_s + reading + by_row
        return seconds

    def prefill_attention(self, table: Table) -> None:
        train, held = _split(_full(table))
        fit = _choose(train, (train["first"] == "bfloat16") & (train["head_dim"] == 128))
        short = (fit["tokens"] <= 128) & (fit["batch"] == 1)
        if short.any():
            self.update(prefill_attention_launch_s=round(float(np.median(fit["seconds"][short])), 8))
        usual = _choose(fit, (fit["tokens"] >= 256) & (fit["heads"] >= 4))
        if not len(usual["seconds"]):
            return

        def score(pair: tuple[float, float]) -> float:
            self.update(prefill_attention_efficiency=pair[0], prefill_attention_ramp_tokens=pair[1])
            return float(np.mean(_relative_errors(self._prefill_s(usual), usual["seconds"])))

        grid = [(share / 100, float(ramp)) for share in range(30, 90, 2) for ramp in range(0, 2001, 100)]
        score(_best(grid, score))
        for dtype, (name, _) in ELEMENTS.items():
            test = _choose(held, held["first"] == name)
            errors = _relative_errors(self._prefill_s(test), test["seconds"])
            self._note(f"prefill_attention_{dtype.value}_kv", errors)

    def _prefill_s(self, rows: Table) -> Floats:
        profile, tokens = self.profile, rows["tokens"]
        pairs = tokens * (tokens + 1) / 2 + tokens * profile.prefill_attention_ramp_tokens / 2
        operations = 4.0 * rows["head_dim"] * rows["heads"] * pairs * rows["batch"]
        rate = self.device.flops[DType.BF16] * profile.prefill_attention_efficiency
        seconds: Floats = profile.prefill_attention_launch_s + operations / rate
        return seconds

    # -- experts --------------------------------------------------------------------------------------------------

    def moe(self, table: Table) -> None:
        train, held = _split(_choose(table, (table["moe_ep"] == 1) & (table["law"] != 1.2)))
        rows = _choose(train, train["first"] == "bfloat16")
        if not len(rows["seconds"]):
            return
        few = rows["tokens"] <= 2
        if few.any():  # the floor: the smallest experts, one or two tokens
            self.update(moe_launch_s=round(float(np.quantile(rows["seconds"][few], 0.02)), 7))

        def score(pair: tuple[float, float]) -> float:
            shares = {**self.profile.moe_compute_efficiency, DType.BF16: pair[0]}
            self.update(moe_compute_efficiency=shares, moe_memory_efficiency=pair[1])
            return float(np.mean(self._moe_errors(DType.BF16, rows)))

        score(_best([(c / 100, m / 100) for c in range(20, 92, 6) for m in range(30, 96, 5)], score))
        shares = dict(self.profile.moe_compute_efficiency)
        # fp8: the block-scaled kernels; the per-tensor ones of the H100 and H200 tables are slower than bf16
        for name, dtype in (("bfloat16", DType.BF16), ("fp8_block", DType.FP8)):
            rows = _choose(train, train["first"] == name)
            if dtype is not DType.BF16 and len(rows["seconds"]):
                shares = self._moe_compute(dtype, rows)
            test = _choose(held, held["first"] == name)
            self._note(f"moe_{dtype.value}", self._moe_errors(dtype, test))
        for dtype in shares:
            if dtype in (DType.FP16, DType.FP32):
                shares[dtype] = shares[DType.BF16]
            elif dtype in (DType.INT8, DType.FP4):
                shares[dtype] = shares[self.eight_bit]
        self.update(moe_compute_efficiency=shares)

    def _moe_compute(self, dtype: DType, rows: Table) -> dict[DType, float]:
        def score(share: float) -> float:
            self.update(moe_compute_efficiency={**self.profile.moe_compute_efficiency, dtype: share})
            return float(np.mean(self._moe_errors(dtype, rows)))

        score(_best([share / 100 for share in range(14, 92, 3)], score))
        return dict(self.profile.moe_compute_efficiency)

    def _moe_errors(self, dtype: DType, rows: Table) -> Floats:
        """Rows of equal shape are predicted together: the formula is vectorised over tokens."""
        shapes = np.stack([rows[key] for key in ("experts", "topk", "hidden", "inter", "moe_tp")])
        keys, index = np.unique(shapes, axis=1, return_inverse=True)
        predicted = np.zeros(len(rows["seconds"]))
        for number, (experts, topk, hidden, inner, ranks) in enumerate(keys.T):
            here = np.ravel(index) == number
            shape = (int(experts), int(topk), int(hidden), float(inner) / float(ranks))
            predicted[here] = experts_s(rows["tokens"][here], *shape, True, dtype, self.device, self.profile)
        return _relative_errors(predicted, rows["seconds"])

    # -- collectives ----------------------------------------------------------------------------------------------

    def collectives(self, custom: Table | None, nccl: Table | None) -> None:
        """Latency of small all-reduces, share of the link of large ones, by ranks: the better of the two libraries."""
        tables = []
        if custom is not None:
            tables.append(_choose(custom, custom["first"] == "vllm_graph"))
        if nccl is not None:
            tables.append(_choose(nccl, (nccl["first"] == "all_reduce") & (nccl["kind"] == 0)))
        latency = dict(self.profile.allreduce_latency_s)
        efficiency = dict(self.profile.allreduce_efficiency)
        for ranks in sorted({int(ranks) for table in tables for ranks in table["ranks"]}):
            mine = [_choose(table, table["ranks"] == ranks) for table in tables]
            small = [table["seconds"][table["bytes"] <= 2**15] for table in mine]
            small = [seconds for seconds in small if len(seconds)]
            if not small:
                continue
            latency[ranks] = round(float(np.median(small[0])), 8)
            shares = []
            for table in mine:
                large = _choose(table, (table["bytes"] >= 2**22) & (table["bytes"] <= 2**27))
                large = _choose(large, large["seconds"] > latency[ranks])
                moved = 2.0 * (ranks - 1) / ranks * large["bytes"]
                share = moved / (large["seconds"] - latency[ranks]) / self.device.link_bytes_per_s
                shares += [float(np.median(share))] if len(share) else []
            if shares:
                efficiency[ranks] = float(f"{min(max(shares), 1.0):.3g}")
            else:
                efficiency.setdefault(ranks, efficiency[min(efficiency, key=lambda known: abs(known - ranks))])
        self.update(allreduce_latency_s=latency, allreduce_efficiency=efficiency)
        if tables:
            rows = _choose(tables[0], tables[0]["bytes"] <= 2**27)
            pairs = zip(rows["bytes"], rows["ranks"], strict=True)
            predicted = [float(all_reduce_s(size, int(ranks), self.device, self.profile)) for size, ranks in pairs]
            self._note("all_reduce_not_held_out", _relative_errors(np.array(predicted), rows["seconds"]))
