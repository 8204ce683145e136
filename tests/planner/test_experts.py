"""Experts placed from measured loads: the file, the placement, what it does to memory and step times."""

import numpy as np
import pytest

from planner.candidates.experts import MeasuredExperts, redundancies
from planner.cost.memory import memory_budget
from planner.cost.step import step_times
from specs.architecture import expert_slot_bytes, load_architecture
from specs.catalog import load_device, load_engine, load_profile
from specs.document import DType
from specs.errors import InputError
from specs.expert_loads import read_expert_loads
from specs.plan import Layout, Limits

MODEL = "Qwen/Qwen3-30B-A3B"
LIMITS = Limits(max_num_seqs=64, max_num_batched_tokens=2048, max_model_len=4096)


@pytest.fixture(scope="module")
def architecture():
    return load_architecture(MODEL)


def layout(architecture, redundant=0):
    return Layout(
        tensor_parallel=8, pipeline_stages=(len(architecture.layers),), expert_parallel=8, redundant_experts=redundant
    )


def skewed(architecture):
    loads = np.ones((len(architecture.layers), 128))
    loads[:, 5] = 40.0
    return MeasuredExperts(loads)


def test_a_hot_expert_is_copied_until_ranks_are_even(architecture):
    measured = skewed(architecture)
    alone, copied = measured.placement(layout(architecture), 8), measured.placement(layout(architecture, 16), 8)
    assert alone.skew == pytest.approx((40 + 15) / ((127 + 40) / 8))  # no copies: its rank has fifteen others
    assert copied.skew_bound <= copied.skew < 1.1 < alone.skew
    assert copied.slots_per_rank == 18
    for layer in copied.physical_to_logical:
        assert len(layer) == 144
        assert set(layer) == set(range(128))


def test_copies_take_memory_and_even_ranks_take_less_time(architecture):
    device, profile, engine = load_device("h100-sxm"), load_profile("h100-sxm"), load_engine("vllm")
    budgets = [
        memory_budget(architecture, layout(architecture, n), DType.BF16, DType.BF16, device, engine, LIMITS)
        for n in (0, 16)
    ]
    more = budgets[1].weights_bytes - budgets[0].weights_bytes
    assert more == pytest.approx(2 * expert_slot_bytes(architecture, DType.BF16, 1), rel=1e-6)
    assert more == pytest.approx(2 * 48 * 3 * 2048 * 768 * 2, rel=1e-6)

    def seconds(skew):
        times = step_times(
            architecture, layout(architecture), DType.BF16, DType.BF16, device, profile, engine, 64, 2048,
            expert_skew=skew,
        )  # fmt: skip
        return times.tokens_s[2048]

    assert seconds(1.0) < seconds(2.6) < seconds(6.0)
    assert seconds(1.0) < seconds(None)  # what tables assume of a router is not even


def test_experts_in_one_rank_need_no_copies(architecture):
    assert redundancies(architecture, 1) == (0,)
    assert redundancies(architecture, 8) == (0, 8, 16)
    assert redundancies(load_architecture("meta-llama/Llama-3.1-8B"), 8) == (0,)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "1,2\n3,x\n", "row 2, column 2: 'x' is no load"),
        ("a.csv", "1,2\n3,-1\n", "row 2, column 2: '-1' is no load"),
        ("a.csv", "1,nan\n3,1\n", "row 1, column 2: 'nan' is no load"),
        ("a.csv", "1,2\n3\n", "row 2 has 1 columns for 2 experts"),
        ("a.csv", "1,2\n", "1 rows for 2 layers with experts"),
        ("a.csv", "0,0\n1,2\n", "row 1 has no load at all"),
        ("a.json", "[[1, 2], [3, true]]", "row 2, column 2: 'True' is no load"),
        ("a.json", "{}", "is no list of lists"),
        ("a.json", "[[1,", "is no JSON"),
    ],
)
def test_what_is_no_load_is_told_by_row_and_column(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_expert_loads(path, 2, 2)
    assert message in str(caught.value)


def test_csv_and_json_say_the_same(tmp_path):
    (tmp_path / "a.csv").write_text("1,2\n3,4.5\n", encoding="utf-8")
    (tmp_path / "a.json").write_text("[[1, 2], [3, 4.5]]", encoding="utf-8")
    assert read_expert_loads(tmp_path / "a.csv", 2, 2) == ((1.0, 2.0), (3.0, 4.5))
    assert read_expert_loads(tmp_path / "a.csv", 2, 2) == read_expert_loads(tmp_path / "a.json", 2, 2)
