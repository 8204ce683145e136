"""The engine: when requests end, what their clients see, and that nothing outlives them."""

from __future__ import annotations

import threading
import time

import pytest

pytest.importorskip("torch")
from served import Collected, greedy, limits, run_all, stub_engine

from runtime.engine import EngineBusyError, EngineState, EngineStoppedError
from runtime.tokenizer import SPECIAL_TOKENS
from specs.errors import InputError

EOS = 256 + SPECIAL_TOKENS.index("<eos>")


def idle(engine) -> bool:
    return engine.scheduler.blocks.used_blocks == 0 and not engine.scheduler.requests


def wait_for(condition, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.002)


def test_max_tokens_ends_with_length_and_all_text():
    engine, _ = stub_engine()
    sink = Collected()
    engine.add_request("a", list(b"ABC"), greedy(4), sink)
    run_all(engine)
    assert (sink.text, sink.reason, [output.generated_tokens for output in sink]) == ("DEFG", "length", [1, 2, 3, 4])
    assert idle(engine)


def test_a_stop_string_ends_the_request_and_is_not_shown():
    engine, runner = stub_engine()
    sink = Collected()
    engine.add_request("a", list(b"AB"), greedy(50, stop=("FG",)), sink)
    run_all(engine)
    assert (sink.text, sink.reason) == ("CDE", "stop")
    assert bytes(sink.ids) == b"CDEFG"
    assert len(runner.steps) == 5
    assert idle(engine)


def test_a_stop_token_ends_the_request_and_min_tokens_puts_it_off():
    engine, _ = stub_engine()
    at_once, later = Collected(), Collected()
    stop = frozenset({ord("D")})
    engine.add_request("a", list(b"ABC"), greedy(9, stop_token_ids=stop), at_once)
    engine.add_request("b", list(b"ABC"), greedy(9, stop_token_ids=stop, min_tokens=2), later)
    run_all(engine)
    assert (at_once.text, at_once.reason, len(at_once.ids)) == ("", "stop", 1)
    assert ord("D") not in later.ids
    assert len(later.ids) == 9


def test_the_end_of_sequence_ends_unless_ignored():
    engine, runner = stub_engine()
    runner.letters = 300
    ends, goes_on = Collected(), Collected()
    engine.add_request("a", [EOS - 2], greedy(5, ignore_eos=False), ends)
    engine.add_request("b", [EOS - 2], greedy(3), goes_on)
    run_all(engine)
    assert (ends.ids, ends.reason) == ([EOS - 1, EOS], "stop")
    assert (goes_on.ids[:2], goes_on.reason) == ([EOS - 1, EOS], "length")


def test_an_abort_frees_blocks_wherever_the_request_stands():
    engine, _ = stub_engine(limits=limits(seqs=1, budget=4))
    sinks = {name: Collected() for name in ("running", "prefilling", "waiting", "unseen", "finished")}
    finished = engine.add_request("finished", [1], greedy(1), sinks["finished"])
    run_all(engine)
    prefilling = engine.add_request("prefilling", [1] * 10, greedy(5), sinks["prefilling"])
    waiting = engine.add_request("waiting", [1], greedy(5), sinks["waiting"])
    engine.step()
    assert engine.scheduler.blocks.used_blocks == 1
    unseen = engine.add_request("unseen", [1], greedy(5), sinks["unseen"])
    for request in (finished, prefilling, waiting, unseen, unseen):
        engine.abort(request, "gone")
    engine.step()
    assert idle(engine)
    assert [sinks[name].reason for name in ("finished", "prefilling", "waiting", "unseen")] == ["length"] + [
        "abort"
    ] * 3
    assert sinks["waiting"][-1].message == "gone"
    assert run_all(engine) == 0


def test_a_full_queue_refuses_and_takes_again_when_there_is_room():
    engine, _ = stub_engine(max_waiting=2)
    first = [engine.add_request(str(index), [1], greedy(1), Collected()) for index in range(2)]
    with pytest.raises(EngineBusyError, match="2 requests are waiting"):
        engine.add_request("c", [1], greedy(1), Collected())
    run_all(engine)
    assert all(request.finish_reason == "length" for request in first)
    engine.add_request("c", [1], greedy(1), Collected())
    run_all(engine)


def test_a_token_outside_the_models_vocabulary_is_refused_before_it_reaches_the_model():
    engine, _ = stub_engine()
    with pytest.raises(InputError, match="token id 262 is not in the vocabulary; expected 0 to 261"):
        engine.add_request("a", [1, 262], greedy(1), Collected())
    with pytest.raises(InputError, match="token id -1"):
        engine.add_request("a", [-1], greedy(1), Collected())


def test_draining_finishes_what_is_in_and_takes_nothing_new():
    engine, _ = stub_engine()
    engine.start()
    sink = Collected()
    engine.add_request("a", [1], greedy(50), sink)
    engine.stop(drain_s=10.0)
    assert (sink.reason, len(sink.ids)) == ("length", 50)
    assert engine.state is EngineState.STOPPED
    with pytest.raises(EngineStoppedError):
        engine.add_request("b", [1], greedy(1), Collected())
    assert idle(engine)


def test_a_stop_without_patience_aborts_and_says_why():
    engine, runner = stub_engine()
    step = runner.run
    runner.run = lambda pieces: (time.sleep(0.01), step(pieces))[1]
    engine.start()
    sinks = [Collected() for _ in range(20)]
    for index, sink in enumerate(sinks):
        engine.add_request(str(index), [1], greedy(200), sink)
    wait_for(lambda: sinks[0].ids)
    started = time.monotonic()
    engine.stop(drain_s=0.05, message="maintenance")
    assert time.monotonic() - started < 2.0
    assert {sink.reason for sink in sinks} == {"abort"}
    assert {sink[-1].message for sink in sinks} == {"maintenance"}
    assert idle(engine)
    engine.stop()  # again: nothing happens


def test_a_step_that_fails_fails_every_request_and_the_engine_says_so():
    engine, runner = stub_engine()
    runner.fail_at = 3
    sinks = [Collected() for _ in range(12)]  # more than there are seats
    for index, sink in enumerate(sinks):
        engine.add_request(str(index), [1], greedy(50), sink)
    engine.start()
    wait_for(lambda: all(sink.reason for sink in sinks))
    assert {sink.reason for sink in sinks} == {"error"}
    assert "the device is gone" in (sinks[0][-1].message or "")
    wait_for(lambda: idle(engine))
    assert engine.state is EngineState.FAILED
    with pytest.raises(EngineStoppedError, match="the device is gone"):
        engine.add_request("b", [1], greedy(1), Collected())
    engine.stop()
    assert engine.state is EngineState.FAILED


def test_a_client_whose_loop_is_closed_does_not_hurt_the_others():
    engine, _ = stub_engine()

    def closed(output):
        raise RuntimeError("Event loop is closed")

    sink = Collected()
    gone = engine.add_request("gone", [1], greedy(100), closed)
    engine.add_request("here", [1], greedy(20), sink)
    run_all(engine)
    assert sink.reason == "length"
    assert gone.finish_reason == "abort"
    assert idle(engine)


def test_requests_and_aborts_from_many_threads_all_end():
    engine, _ = stub_engine(blocks=20)
    engine.start()
    sinks: list[Collected] = []

    def client(number: int) -> None:
        for index in range(15):
            sink = Collected()
            request = engine.add_request(f"{number}-{index}", [number + 1] * 5, greedy(20), sink)
            sinks.append(sink)
            if index % 3 == 0:
                engine.abort(request)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_for(lambda: all(sink.reason for sink in sinks), 20.0)
    engine.stop()
    assert len(sinks) == 90
    assert idle(engine)
    finished = [sink for sink in sinks if sink.reason == "length"]
    assert len(finished) >= 60
    assert all(len(sink.ids) == 20 for sink in finished)
