"""Device profiles from kernel tables: known parameters are found again, what no table shows stays."""

from __future__ import annotations

import numpy as np
import pytest

from planner.cost.collectives import all_reduce_s
from planner.cost.roofline import gemm_s
from planner.cost.table_fit import profile_of_tables, quantiles_of
from planner.operators import OperatorTable
from specs.catalog import load_device, load_profile
from specs.document import DType

DEVICE = load_device("h100-sxm")
BASE = load_profile("h100-sxm")
WIDTHS = [(n, k) for n in (64, 256, 1024, 2048, 4096, 8192, 16384) for k in (64, 256, 1024, 2048, 4096, 8192, 16384)]
TOKENS = (1, 2, 4, 8, 16, 64, 256, 1024, 4096)


def gemm_table(profile) -> OperatorTable:
    m, n, k = (np.array(column, float) for column in zip(*((t, n, k) for t in TOKENS for n, k in WIDTHS), strict=True))
    return OperatorTable(
        "gemm",
        {"m": m, "n": n, "k": k},
        np.array(["bfloat16"] * len(m)),
        gemm_s(m, k, n, DType.BF16, DEVICE, profile),
    )


def test_the_parameters_behind_a_table_of_products_are_found_again():
    truth = BASE.model_copy(
        update={
            "launch_s": 3e-6,
            "compute_efficiency": {**BASE.compute_efficiency, DType.BF16: 0.62},
            "gemm_ramp_tokens": {**BASE.gemm_ramp_tokens, DType.BF16: 64.0},
        }
    )
    found, errors = profile_of_tables({"gemm": gemm_table(truth)}, DEVICE, BASE, octave_rows=3)
    assert found.launch_s == pytest.approx(3e-6, rel=0.1)
    assert found.compute_efficiency[DType.BF16] == pytest.approx(0.62, abs=0.02)
    assert found.gemm_ramp_tokens[DType.BF16] == pytest.approx(64.0, abs=16.0)
    assert found.compute_efficiency[DType.FP16] == found.compute_efficiency[DType.BF16]
    assert np.median(errors["gemm_bf16"]) < 0.05
    assert quantiles_of(errors)["p50"] < 0.05


def test_what_no_table_shows_stays():
    found, _ = profile_of_tables({"gemm": gemm_table(BASE)}, DEVICE, BASE, octave_rows=3)
    changed = {name for name in type(BASE).model_fields if getattr(found, name) != getattr(BASE, name)}
    assert changed <= {"launch_s", "weight_streaming", "compute_efficiency", "gemm_ramp_tokens"}


def test_collectives_of_the_ranks_that_were_measured_only():
    truth = BASE.model_copy(update={"allreduce_latency_s": {4: 2e-5}, "allreduce_efficiency": {4: 0.4}})
    sizes = 2.0 ** np.arange(8, 28)
    table = OperatorTable(
        "nccl",
        {"bytes": sizes, "ranks": np.full(len(sizes), 4.0), "kind": np.zeros(len(sizes))},
        np.array(["all_reduce/4"] * len(sizes)),
        all_reduce_s(sizes, 4, DEVICE, truth),
    )
    found, _ = profile_of_tables({"nccl": table}, DEVICE, BASE)
    assert found.allreduce_latency_s[4] == pytest.approx(2e-5, rel=0.02)
    assert found.allreduce_efficiency[4] == pytest.approx(0.4, rel=0.02)
    for ranks in (2, 8):
        assert found.allreduce_latency_s[ranks] == BASE.allreduce_latency_s[ranks]


def test_a_bare_table_changes_nothing():
    """One row of a shape that says nothing about any parameter."""
    row = {"m": np.array([17.0]), "n": np.array([100.0]), "k": np.array([3000.0])}
    table = OperatorTable("gemm", row, np.array(["bfloat16"]), np.array([1e-5]))
    found, errors = profile_of_tables({"gemm": table}, DEVICE, BASE)
    assert errors == {}
    assert (found.launch_s, found.weight_streaming) == (BASE.launch_s, BASE.weight_streaming)
