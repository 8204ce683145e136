"""Simulations at the same time: results in order, failures told, threads bounded."""

from __future__ import annotations

import threading

import pytest

from planner.simulate.together import threads, together


@pytest.mark.parametrize("count", ["1", "2", "5"])
def test_results_come_in_the_order_of_the_tasks(monkeypatch: pytest.MonkeyPatch, count: str) -> None:
    monkeypatch.setenv("CAPSTAN_THREADS", count)
    first_may_end = threading.Event()

    def slow() -> str:
        if count != "1":
            first_may_end.wait(10.0)
        return "first"

    def fast() -> str:
        first_may_end.set()
        return "second"

    assert together([slow, fast]) == ["first", "second"]


def test_the_first_failure_in_order_is_raised_and_what_waits_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPSTAN_THREADS", "2")
    both, started = threading.Barrier(2, timeout=10.0), []

    def fail(text: str) -> None:
        started.append(text)
        both.wait()
        raise ValueError(text)

    with pytest.raises(ValueError, match="one"):
        together([lambda: fail("one"), lambda: fail("two"), *[lambda: started.append("more")] * 1000])
    assert {"one", "two"} <= set(started)
    assert len(started) < 1000


def test_threads_are_those_that_are_stated_and_never_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for stated, expected in (("3", 3), ("0", 1)):
        monkeypatch.setenv("CAPSTAN_THREADS", stated)
        assert threads() == expected
    monkeypatch.setenv("CAPSTAN_THREADS", "many")
    assert 1 <= threads() <= 2
    assert together([]) == []
