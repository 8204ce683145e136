"""Every kernel against torch, in Triton's interpreter: runs interpreted_cases.py once and judges each of its cases.

bfloat16 is not tested here: the interpreter's `tl.dot` is wrong for it (see interpreted_cases.py). tests/gpu does.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="kernels need the runtime extra")
pytest.importorskip("torch", reason="kernels need the runtime extra")

SCRIPT = Path(__file__).parent / "interpreted_cases.py"
# Names stand here so that each is a test of its own; `test_every_case_is_judged` keeps the list whole.
CASES = [
    "add_rms_norm-fp16-1",
    "add_rms_norm-fp16-96",
    "add_rms_norm-fp32-48",
    "add_rms_norm-fp32-64",
    "attention_far_block-prefill",
    "attention_far_block-split",
    "attention_kv_half",
    "attention_many_sequences",
    "attention_mixed-decode-4-1-0-fp32",
    "attention_mixed-decode-4-2-1-fp32",
    "attention_mixed-decode-4-4-0-fp32",
    "attention_mixed-decode-6-2-0-fp32",
    "attention_mixed-decode-8-1-0-fp16",
    "attention_mixed-prefill-4-1-0-fp32",
    "attention_mixed-prefill-4-2-40-fp16",
    "attention_mixed-prefill-4-2-6-fp32",
    "attention_mixed-prefill-4-4-0-fp32",
    "attention_mixed-prefill-8-1-0-fp32",
    "attention_split-4-1-0-0-fp32",
    "attention_split-4-2-16-1-fp32",
    "attention_split-4-2-5-0-fp32",
    "attention_split-4-4-0-2-fp32",
    "attention_split-6-2-0-0-fp16",
    "attention_split_invariance",
    "attention_tile_borders",
    "attention_window_begins_later-prefill",
    "attention_window_begins_later-split",
    "moe_products-False-fp32-32",
    "moe_products-True-fp16-64",
    "moe_products-True-fp32-24",
    "moe_sort-1-8",
    "moe_sort-3-5",
    "moe_sort-700-6",
    "moe_topk-130-8-True-fp32",
    "moe_topk-4-4-True-fp32",
    "moe_topk-6-3-False-fp16",
    "moe_topk-8-2-True-fp32",
    "rope_kv_write-fp16-fp16-8-1-True",
    "rope_kv_write-fp32-fp16-6-2-False",
    "rope_kv_write-fp32-fp32-4-4-False",
    "rope_kv_write-fp32-fp32-8-2-True",
    "sample-33-fp16",
    "sample-5000-fp32",
    "sample-700-fp32",
    "sample_odd_rows",
    "sample_ties",
    "swiglu-fp16-1500",
    "swiglu-fp32-40",
]


@pytest.fixture(scope="module")
def verdicts() -> dict[str, str | None]:
    """Case -> what went wrong, or None."""
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=300)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, done.stderr
    return {line["case"]: line["problem"] for line in lines}


@pytest.mark.parametrize("name", CASES)
def test_kernel_equals_torch(name: str, verdicts: dict[str, str | None]) -> None:
    assert verdicts[name] is None, verdicts[name]


def test_every_case_is_judged(verdicts: dict[str, str | None]) -> None:
    assert sorted(CASES) == sorted(verdicts)


def test_no_bfloat16_in_the_interpreter() -> None:
    """The trap: a bfloat16 case would pass or fail for the wrong reason."""
    assert not re.search(r"DType\.BF16|torch\.bfloat16", SCRIPT.read_text())
