"""A declared closed loop follows the protocol of serving benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from planning import declared

from planner.simulate import declared_closed_loop, declared_workload
from specs.deployment import (
    ArrivalSpec,
    ClosedLoopSpec,
    FixedLength,
    HistogramLength,
    LognormalLength,
    TrafficClass,
    UniformLength,
)
from specs.errors import InputError, NotHonouredError


def loop(loop: ClosedLoopSpec, **more: Any) -> TrafficClass:
    fields = {
        "prompt_tokens": UniformLength(low_tokens=819, high_tokens=1024),
        "output_tokens": UniformLength(low_tokens=80, high_tokens=100),
    } | more
    return TrafficClass(name="bench", model="m", closed_loop=loop, **fields)


def test_ten_requests_for_each_client_and_none_to_warm_up() -> None:
    found = declared_closed_loop(declared(loop(ClosedLoopSpec(concurrency=32))), Path())
    assert (found.concurrency, found.warmup, len(found.prompt_tokens), len(found.output_tokens)) == (32, 0, 320, 320)
    assert found.prompt_tokens.min() >= 819
    assert found.prompt_tokens.max() <= 1024
    assert found.prompt_tokens.mean() == pytest.approx(921.5, abs=4 * 59.5 / 320**0.5)


def test_requests_and_warm_up_as_stated() -> None:
    found = declared_closed_loop(declared(loop(ClosedLoopSpec(concurrency=4, requests=7, warmup=8))), Path(), seed=3)
    assert (found.warmup, len(found.prompt_tokens)) == (8, 15)
    again = declared_closed_loop(declared(loop(ClosedLoopSpec(concurrency=4, requests=7, warmup=8))), Path(), seed=3)
    other = declared_closed_loop(declared(loop(ClosedLoopSpec(concurrency=4, requests=7, warmup=8))), Path(), seed=4)
    assert found.prompt_tokens.tobytes() == again.prompt_tokens.tobytes() != other.prompt_tokens.tobytes()


def test_tails_are_cut_to_the_context() -> None:
    law = LognormalLength(mean_tokens=900, p99_tokens=5000)
    found = declared_closed_loop(
        declared(loop(ClosedLoopSpec(concurrency=50), prompt_tokens=law, output_tokens=law), context=1000), Path()
    )
    assert (found.prompt_tokens + found.output_tokens).max() <= 1000


def test_what_a_closed_loop_cannot_be(tmp_path: Path) -> None:
    drawn = TrafficClass(
        name="drawn",
        model="m",
        arrivals=ArrivalSpec(rate_per_s=1.0),
        prompt_tokens=FixedLength(tokens=5),
        output_tokens=FixedLength(tokens=5),
    )
    assert declared_closed_loop(declared(drawn), Path()) is None
    with pytest.raises(NotHonouredError, match="1 classes stand beside") as caught:
        declared_closed_loop(declared(drawn, loop(ClosedLoopSpec(concurrency=2))), Path())
    assert caught.value.field == "traffic[1].closed_loop"
    with pytest.raises(NotHonouredError, match="no arrivals of its own"):
        declared_workload(declared(loop(ClosedLoopSpec(concurrency=2))), Path())
    missing = loop(ClosedLoopSpec(concurrency=2), output_tokens=HistogramLength(file="none.csv"))
    with pytest.raises(InputError, match="cannot be read"):
        declared_closed_loop(declared(missing), tmp_path)
