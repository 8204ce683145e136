"""Tokens from logits: hand-made distributions, the rule written out plainly, the same tokens from the kernel, seeds
that ignore the batch, log-probabilities of the raw model."""

# ruff: noqa: E402 - what is imported needs packages that may be absent; then the file is skipped
from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from runtime.launch import Kernels, LaunchCounts
from runtime.model_runner import ModelRunner
from runtime.request import Request, SamplingParams
from runtime.sampler import LEAST_TEMPERATURE, REACH, WORDS_AT_ONCE, Draw, KernelSampler, gumbel, philox, sample
from specs.document import DType
from specs.errors import InputError
from specs.program import ProgramManifest
from specs.service import Sequence


def draw(seed: int = 0, position: int = 0, forbidden: frozenset[int] = frozenset(), **params: object) -> Draw:
    return Draw(SamplingParams(max_tokens=100, **params), seed, position, forbidden)


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.log(torch.tensor([probabilities]))


def shares(logits: torch.Tensor, draws: int = 4000, **params: object) -> list[float]:
    """Share of each token over many positions of one seed."""
    counts = [0] * logits.shape[1]
    rows = logits.repeat(draws, 1)
    for token in sample(rows, [draw(seed=5, position=position, **params) for position in range(draws)]):
        counts[token.token] += 1
    return [count / draws for count in counts]


def test_greedy_takes_the_largest_and_the_lowest_id_among_equals():
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [5.0, 0.0, 0.0, 6.0]])
    tokens = sample(logits, [draw(temperature=0), draw(temperature=0)])
    assert [token.token for token in tokens] == [1, 3]


def test_draws_follow_the_distribution():
    got = shares(logits_of(0.5, 0.3, 0.2), temperature=1.0)
    # four standard deviations of a share of 4000 draws are at most 0.032
    assert got == pytest.approx([0.5, 0.3, 0.2], abs=0.032)


def test_temperature_sharpens():
    """At temperature 1/2 probabilities are squared and normalised: 25, 9, 4 of 38."""
    assert shares(logits_of(0.5, 0.3, 0.2), temperature=0.5) == pytest.approx([25 / 38, 9 / 38, 4 / 38], abs=0.032)


def test_top_k_keeps_the_k_likeliest():
    assert shares(logits_of(0.2, 0.5, 0.3), top_k=2) == pytest.approx([0, 5 / 8, 3 / 8], abs=0.032)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.4, [1, 0, 0]), (0.5, [1, 0, 0]), (0.6, [5 / 8, 3 / 8, 0]), (0.85, [0.5, 0.3, 0.2])]
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, kept):
    assert shares(logits_of(0.5, 0.3, 0.2), top_p=top_p) == pytest.approx(kept, abs=0.032)


def test_top_p_counts_what_top_k_left():
    """Of 0.4, 0.35, 0.25 two are left: 8/15 and 7/15; 0.5 is reached by the first alone."""
    assert shares(logits_of(0.4, 0.35, 0.25), top_k=2, top_p=0.5) == pytest.approx([1, 0, 0])


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_request_draws_the_same_whatever_its_neighbours_are(data):
    seed, position = data.draw(st.integers(0, 2**64 - 1)), data.draw(st.integers(0, 1000))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    own = torch.randn(1, 50) * 3
    mine = draw(seed, position, temperature=0.9, top_p=0.95, top_k=20, logprobs=3)
    alone = sample(own, [mine])[0]
    others = data.draw(st.integers(1, 5))
    place = data.draw(st.integers(0, others))
    rows = torch.randn(others, 50)
    mixed = torch.cat([rows[:place], own, rows[place:]])
    draws = [draw(9, 9, temperature=0.3 * index, logprobs=index or None) for index in range(others)]
    together = sample(mixed, [*draws[:place], mine, *draws[place:]])[place]
    assert together.token == alone.token
    assert [top.token for top in together.top] == [top.token for top in alone.top]
    assert together.logprob == pytest.approx(alone.logprob, abs=1e-6)


# The rule, written out with Python's integers and a whole sort ----------------------------------------------------


def philox_4x32_10(counter: list[int], key: list[int]) -> list[int]:
    """Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC'11), section 4.3."""
    for number in range(10):
        one, two = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        low, high = ((key[i] + number * step) % 2**32 for i, step in enumerate((0x9E3779B9, 0xBB67AE85)))
        counter = [(two >> 32) ^ counter[1] ^ low, two % 2**32, (one >> 32) ^ counter[3] ^ high, one % 2**32]
    return counter


def first_word(seed: int, position: int, token: int) -> int:
    return philox_4x32_10([token, position % 2**32, 0, 0], [seed % 2**32, (seed >> 32) % 2**32])[0]


def plain_rule(logits: torch.Tensor, one: Draw) -> int:
    """The token of one row, by sorting all of it; exact but for what is stated to be fp32."""
    x = [-math.inf if token in one.forbidden else value for token, value in enumerate(logits.tolist())]
    params, most = one.params, max(x)
    temperature = single(params.temperature)
    if temperature < 2**-16 or most == -math.inf:
        return x.index(most)
    descending = sorted(x, reverse=True)
    floor = descending[params.top_k - 1] if 0 < params.top_k < len(x) else -math.inf
    weights = [math.exp((value - most) / temperature) for value in descending if value >= floor]
    top_p, reached = single(params.top_p), 0.0
    if top_p < 1:
        for value, weight in zip(descending, weights, strict=False):
            reached += weight
            if reached >= top_p * (1 - 2**-17) * sum(weights):
                floor = value
                break
    scale = np.float32(1) / np.float32(temperature)
    best, winner = -math.inf, 0
    for token, value in enumerate(x):
        if value >= floor:
            u = np.float32(((first_word(one.seed, one.position, token) >> 9) + 0.5) * 2.0**-23)
            score = float((np.float32(value) - np.float32(most)) * scale - np.log(-np.log(u)))
            if score > best:
                best, winner = score, token
    return winner


def single(value: float) -> float:
    """Rounded to fp32."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_written_out_gives_the_published_answers(counter, key, words):
    """kat_vectors of Random123."""
    assert philox_4x32_10(counter, key) == words


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-(2**63), 2**64 - 1), st.integers(0, 2**33)), min_size=1, max_size=5),
    st.lists(st.integers(0, 2**24), min_size=1, max_size=9),
)
def test_philox_of_many_equals_philox_written_out(keys, tokens):
    ids = np.tile(np.array(tokens, dtype=np.uint64), (len(keys), 1))
    found = philox(ids, [draw(seed, position) for seed, position in keys])
    assert found.tolist() == [[first_word(seed, position, token) for token in tokens] for seed, position in keys]


def test_philox_does_not_depend_on_how_ids_are_cut():
    count = 2 * WORDS_AT_ONCE + 3
    found = philox(np.arange(count, dtype=np.uint64).reshape(1, -1), [draw(9, 4)])[0]
    for token in (0, WORDS_AT_ONCE - 1, WORDS_AT_ONCE, count - 1):
        assert found[token] == first_word(9, 4, token)
    assert len(np.unique(found)) > 0.999 * count


def test_noise_never_reaches_further_than_the_pruning_assumes():
    least, most = (-math.log(-math.log((word + 0.5) * 2.0**-23)) for word in (0, 2**23 - 1))
    assert most - least < REACH
    noise = gumbel(np.arange(20_000, dtype=np.uint64).reshape(1, -1), [draw(3)])[0]
    assert noise.mean() == pytest.approx(0.5772, abs=0.04)  # Euler's constant; four standard errors
    assert noise.var() == pytest.approx(math.pi**2 / 6, rel=0.1)


ROWS = st.one_of(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40),
    st.lists(st.sampled_from([-math.inf, -2.0, -0.0, 0.0, 0.5, 1.0]), min_size=1, max_size=40),  # full of ties
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_tokens_are_those_of_the_rule_written_out(data):
    row = torch.tensor(data.draw(ROWS))
    asked = draw(
        data.draw(st.integers(-(2**63), 2**64 - 1)),
        data.draw(st.integers(0, 10**6)),
        data.draw(st.frozensets(st.integers(0, len(row) + 1), max_size=3)),
        temperature=data.draw(st.one_of(st.sampled_from([0.0, 1e-300, 1e-5, 0.5, 1.0, 100.0]), st.floats(0.05, 5))),
        top_k=data.draw(st.sampled_from([0, 1, 2, 5, 39, 40, 2**40])),
        top_p=data.draw(st.sampled_from([1.0, 1 - 1e-12, 0.99999, 0.95, 0.5, 0.25, 1e-6])),
    )
    assert sample(row.unsqueeze(0), [asked])[0].token == plain_rule(row, asked)


def test_long_rows_are_drawn_by_the_same_rule():
    """More ids than are hashed at once, flat and steep, with and without truncation."""
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(6, WORDS_AT_ONCE + 900, generator=generator) * torch.tensor([[0.1], [2], [9], [2], [2], [2]])
    draws = [
        draw(1, 2), draw(2, 3), draw(3, 4, temperature=0.3), draw(4, 5, top_p=0.9), draw(5, 6, top_k=9000),
        draw(6, 7, top_k=300, top_p=0.5),
    ]  # fmt: skip
    wanted = [plain_rule(row, one) for row, one in zip(rows, draws, strict=True)]
    assert [token.token for token in sample(rows, draws)] == wanted
    assert len({*wanted}) > 3


def test_ids_that_tie_with_the_kth_are_all_kept():
    got = shares(torch.tensor([[1.0, 1.0, 0.0, 1.0, -1.0]]), top_k=2)
    assert got == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3, 0], abs=0.032)
    assert shares(torch.tensor([[0.0, -0.0, -1.0]]), top_k=1) == pytest.approx([0.5, 0.5, 0], abs=0.032)


def test_temperatures_too_small_for_noise_are_greedy():
    """At 2^-17 a difference of 1e-4 is 13 units of noise, but the rule reads no noise there at all."""
    row = torch.tensor([[0.0, 1e-7]])
    for temperature in (LEAST_TEMPERATURE / 2, 1e-40, 1e-300):
        assert {sample(row, [draw(seed, temperature=temperature)])[0].token for seed in range(20)} == {1}
    assert {sample(row, [draw(seed, temperature=LEAST_TEMPERATURE)])[0].token for seed in range(20)} == {0, 1}


def test_a_request_without_a_seed_gets_one_when_it_arrives():
    def arrive(seed: int | None) -> int:
        params = SamplingParams(max_tokens=1, seed=seed)
        return Request("a", (1,), params, Sequence(-1, 1), lambda output: None).seed

    assert arrive(5) == 5
    assert len({arrive(None) for _ in range(20)}) == 20


# The kernel ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    pytest.importorskip("triton", reason="the kernel needs the runtime extra")
    script = Path(__file__).with_name("interpreted_sampler.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    results: dict[str, Any] = json.loads(done.stdout)
    return results


@pytest.mark.parametrize("table", range(4))
def test_the_kernel_draws_the_same_tokens_as_the_cpu(interpreted, table):
    """Every kind of request, on flat, steep, tied and masked rows; log-probabilities are of one function."""
    found = interpreted["tables"][table]
    assert found["launches"] == 1  # one for all rows
    assert found["kernel"] == found["cpu"]
    assert found["kernel"] != found["greedy"]
    assert found["same_logprobs"]
    assert found["untouched"]


def test_the_kernel_path_refuses_broken_logits(interpreted):
    assert interpreted["errors"] == ["the model computed NaN or infinite logits"] * 2
    assert interpreted["everything_forbidden"] == 0
    assert sample(torch.zeros(1, 5), [draw(forbidden=frozenset(range(5)))])[0].token == 0


class RecordingLauncher:
    """Keeps the arguments; writes token 3."""

    def __init__(self) -> None:
        self.constants: dict[str, int] = {}
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, grid: Any, tokens: torch.Tensor, logprobs: torch.Tensor, *arguments: Any) -> None:
        tokens.fill_(3)
        logprobs.fill_(-1.0)
        self.calls.append((grid, tokens, logprobs, *arguments))


def test_what_the_kernel_is_handed():
    launcher = RecordingLauncher()
    draws = [draw(2**64 - 1, 7, temperature=0.5, top_k=2**40), draw(5, 8, frozenset({1, 99}), top_k=2, top_p=0.5)]
    logits = torch.zeros(2, 12)[:, ::2]  # not contiguous
    assert [token.token for token in KernelSampler(launcher)(logits, draws)] == [3, 3]
    assert KernelSampler(launcher)(logits[:0], []) == []
    ((grid, *tensors),) = launcher.calls
    assert grid == (2,)
    assert all(tensor.is_contiguous() for tensor in tensors)
    names = ["int64", "float32", "float32", "float32", "int32", "float32", "int64", "int64"]
    assert [str(tensor.dtype) for tensor in tensors] == [f"torch.{name}" for name in names]
    values, *columns = (tensor.tolist() for tensor in tensors[2:])
    assert values == [[0.0] * 6, [0.0, -math.inf, 0.0, 0.0, 0.0, 0.0]]
    assert columns == [[0.5, 1.0], [0, 2], [1.0, 0.5], [-1, 5], [7, 8]]
    assert not logits.any()  # the logits themselves are left as they are


def runner(kernels: dict[str, Any] | None, sample_kernel: str | None) -> ModelRunner:
    manifest = ProgramManifest(
        family="llama", module="program.py", backend="torch" if kernels is None else "triton", tensor_parallel=1,
        compute_dtype=DType.FP32, kv_dtype=DType.FP32, layers=0, kv_heads=1, head_dim=2, block_size_tokens=1,
        vocab_size=6, slots=(), sample_kernel=sample_kernel,
    )  # fmt: skip
    made = None if kernels is None else Kernels(kernels, LaunchCounts())
    return ModelRunner(lambda: torch.empty(0), manifest, {}, 1, torch.device("cpu"), made)


def test_a_runner_over_kernels_samples_with_the_bundles_kernel(caplog):
    logits, asked = torch.eye(6)[:1], [draw(temperature=0)]
    launcher = RecordingLauncher()
    assert runner({"sample_it": launcher}, "sample_it").sample(logits, asked)[0].token == 3
    assert len(launcher.calls) == 1
    assert runner(None, None).sample(logits, asked)[0].token == 0
    assert caplog.text == ""
    assert runner({"other": launcher}, None).sample(logits, asked)[0].token == 0
    assert "no sampling kernel; tokens are drawn on the CPU" in caplog.text


def test_log_probabilities_are_the_models_own_before_temperature_and_truncation():
    token = sample(logits_of(0.5, 0.3, 0.2), [draw(temperature=0.1, top_k=1, logprobs=2)])[0]
    assert token.token == 0
    assert token.logprob == pytest.approx(math.log(0.5), abs=1e-6)
    assert [(top.token, round(math.exp(top.logprob), 4)) for top in token.top] == [(0, 0.5), (1, 0.3)]
    assert sample(logits_of(0.5, 0.5), [draw(temperature=0)])[0].logprob is None


def test_forbidden_tokens_never_come_and_keep_their_log_probability():
    for temperature in (0.0, 1.0):
        asked = draw(temperature=temperature, forbidden=frozenset({0, 999}), logprobs=1)
        token = sample(logits_of(0.9, 0.1), [asked])[0]
        assert token.token == 1
        assert token.logprob == pytest.approx(math.log(0.1), abs=1e-6)


def test_minus_infinity_is_fine_and_nan_and_infinity_are_not():
    row = torch.tensor([[float("-inf"), 0.0, float("-inf")]])
    assert sample(row, [draw(temperature=1.0)])[0].token == 1
    for broken in (float("nan"), float("inf")):
        with pytest.raises(FloatingPointError):
            sample(torch.tensor([[0.0, broken], [0.0, 0.0]]), [draw(), draw()])


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -0.1), ("temperature", float("nan")), ("top_p", 0.0), ("top_p", 1.1), ("top_k", -1),
     ("min_tokens", 101), ("logprobs", 21), ("seed", 2**64), ("stop", ("",)), ("max_tokens", 0)],
)  # fmt: skip
def test_parameters_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(InputError) as caught:
        SamplingParams(**{"max_tokens": 100, field: value})
    assert caught.value.field == field
