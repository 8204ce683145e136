"""What a plan says of its costs: errors of the fit in use, and whose figures a device borrows."""

from __future__ import annotations

import pytest

from planner.cost.latency import borrowed_note, kernel_errors, unmeasured_note
from specs.catalog import load_device, load_profile
from specs.document import DType


def of(device: str) -> tuple[dict[str, float], str | None]:
    facts, profile = load_device(device), load_profile(device)
    return kernel_errors(facts, profile), borrowed_note(facts, profile)


def test_a_measured_device_names_the_errors_of_its_own_fit() -> None:
    errors, note = of("h100")
    assert note is None
    assert {"gemm", "generation_attention", "moe", "nccl"} <= set(errors)
    assert max(errors[name] for name in ("gemm", "generation_attention", "moe", "nccl")) < 0.05


@pytest.mark.parametrize("device", ["b200", "l4"])
def test_a_device_without_tables_says_so_and_is_less_sure(device: str) -> None:
    errors, note = of(device)
    assert note is not None
    assert "no measurements" in note
    assert errors["gemm"] > of("h100")[0]["gemm"]


@pytest.mark.parametrize("device", ["mi300x", "cpu"])
def test_of_borrowed_figures_no_error_is_known(device: str) -> None:
    errors, note = of(device)
    assert errors == {}
    assert note is not None
    assert "borrowed" in note


@pytest.mark.parametrize(
    ("device", "weights", "said"),
    [
        ("a100", DType.BF16, False),
        ("a100", DType.FP8, True),
        ("h100", DType.FP8, False),
        ("h100", DType.INT4, True),
        ("mi300x", DType.FP8, False),
    ],
)
def test_types_without_tables_are_named(device: str, weights: DType, said: bool) -> None:
    note = unmeasured_note(load_device(device), load_profile(device), weights)
    assert (note is not None) == said
    assert note is None or f"{weights} weights" in note
