"""The closed loop: against arithmetic done by hand, Little's law, and the oracle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation_cases import random_model
from test_simulate_laws import replica

from planner.simulate import simulate_closed_loop
from planner.simulate.result import REFUSALS


def lengths(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int64)


def test_by_hand() -> None:
    """Steps of 1 s: two clients share every step; a prompt that fits the budget takes one step with its first token."""
    model = replica(flat_s=1.0)
    result = simulate_closed_loop(model, 2, lengths(4, 4, 4, 4), lengths(2, 4, 3, 1))
    assert result.sent_s.tolist() == [0.0, 0.0, 2.0, 4.0]  # the third follows the first, the fourth the second
    assert result.ttft_s.tolist() == [1.0, 1.0, 1.0, 1.0]
    assert result.e2e_s.tolist() == [2.0, 4.0, 3.0, 1.0]
    assert result.tpot_s[:3].tolist() == [1.0, 1.0, 1.0]
    assert np.isnan(result.tpot_s[3])
    assert result.seconds == 5.0
    assert result.output_tokens_per_s == 2.0


def test_the_first_burst_queues() -> None:
    """Eight prompts of the whole budget arrive together: the k-th has its first token after k steps."""
    result = simulate_closed_loop(replica(flat_s=1.0), 8, lengths(*[16] * 8), lengths(*[1] * 8))
    assert result.ttft_s.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]


def test_warm_up_is_served_and_left_out() -> None:
    model, prompts, outputs = replica(flat_s=1.0), lengths(*[16] * 20), lengths(*range(1, 21))
    whole = simulate_closed_loop(model, 3, prompts, outputs)
    rest = simulate_closed_loop(model, 3, prompts, outputs, warmup=6)
    np.testing.assert_array_equal(rest.e2e_s, whole.e2e_s[6:])
    np.testing.assert_array_equal(rest.sent_s, whole.sent_s[6:])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_clients_are_never_idle(clients: int, replicas: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    model = random_model(random)
    prompts, outputs = random.integers(1, 120, 40), random.integers(1, 60, 40)
    fits = model.can_serve(prompts, outputs)
    prompts, outputs = prompts[fits], outputs[fits]
    if len(prompts) == 0 or model.scheduling.max_waiting_tokens is not None:
        return
    result = simulate_closed_loop(model, clients, prompts, outputs, replicas=replicas)
    ends = np.sort(result.sent_s + result.e2e_s)
    later = result.sent_s[clients:]
    np.testing.assert_allclose(later, ends[: len(later)], rtol=1e-12)  # each follows the end of another at once


def test_refused_requests_are_not_served() -> None:
    """Two clients, one seat, and no prompt may wait: what comes while one waits is refused at once."""
    base = replica(flat_s=1.0, seats=1)
    model = replace(base, scheduling=base.scheduling.model_copy(update={"max_waiting_tokens": 1}))
    result = simulate_closed_loop(model, 3, lengths(*[4] * 6), lengths(*[2] * 6))
    assert set(result.refusal.tolist()) == {0, REFUSALS.index("queue full")}
    assert (result.finished == (result.refusal == 0)).all()
    assert result.output_tokens_per_s == 2 * result.finished.sum() / result.seconds
    assert result.requests_per_s <= 0.5


def test_what_cannot_be_measured_is_refused() -> None:
    model = replica(blocks=4)
    for clients, count, warmup in ((0, 4, 0), (1, 0, 0), (2, 4, 4), (2, 4, -1)):
        with pytest.raises(ValueError, match="none is measured"):
            simulate_closed_loop(model, clients, lengths(*[4] * count), lengths(*[4] * count), warmup=warmup)
    with pytest.raises(ValueError, match="request 1 of 90"):
        simulate_closed_loop(model, 1, lengths(4, 90), lengths(4, 4))


def test_the_bound_on_events_ends_it() -> None:
    model = replace(replica(flat_s=1.0))
    result = simulate_closed_loop(model, 2, lengths(*[4] * 9), lengths(*[9] * 9), max_events=5)
    assert result.event_bound_hit
    assert result.events == 5
    assert np.isnan(result.e2e_s[-1])
