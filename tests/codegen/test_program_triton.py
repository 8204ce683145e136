"""The program over Triton kernels computes what the torch program does (Triton's interpreter; fp32 and fp16)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("transformers")

# variant:dtype:ranks:layers -> largest difference, relative to the largest logit
CASES = {
    "llama-rope3:fp32:1:2": 1e-5,
    "llama-biased:fp16:2:1": 0.01,
    "mistral-window:fp32:1:1": 1e-5,
    "qwen2-window:fp32:1:2": 1e-5,
    "qwen3:fp32:2:1": 1e-5,
    "mixtral:fp32:1:1": 1e-5,
    "qwen3-moe-mixed:fp32:1:2": 1e-5,
    "qwen3-moe:fp16:2:1": 0.01,
}


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    script = Path(__file__).parent / "interpreted_programs.py"
    done = subprocess.run(
        [sys.executable, str(script), *CASES],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results: dict[str, Any] = json.loads(done.stdout)
    return results


@pytest.mark.parametrize(("case", "tolerance"), CASES.items())
def test_same_logits_as_the_torch_program(interpreted: dict[str, Any], case: str, tolerance: float) -> None:
    assert interpreted[case]["worst"] <= tolerance


@pytest.mark.parametrize("case", CASES)
def test_every_kernel_of_the_bundle_is_launched(interpreted: dict[str, Any], case: str) -> None:
    """The steps hold prefill, mixed and decode batches, so a kernel that never runs would be dead weight."""
    assert interpreted[case]["unused"] == []
