"""Who sends the requests of a stated deployment: the published runs' clients, the nearest ones', or stated ones."""

from __future__ import annotations

import dataclasses

import pytest

from planner.estimate import Client, Point, client_note, predict_point, protocol_of
from planner.estimate.protocol import EQUAL, EXACT, INFERENCEX, SWEEP, Protocol


def point(isl: int, osl: int) -> Point:
    """Llama-3.1-70B in fp8 on four H100 under vLLM, 16 requests in flight."""
    names = {"model": "meta-llama/Llama-3.1-70B", "gpu": "h100_sxm", "engine": "vllm", "precision": "fp8"}
    return Point.read({**names, "tp_size": 4, "isl": isl, "osl": osl, "concurrency": 16})


@pytest.mark.parametrize(
    ("isl", "osl", "engine", "client"),
    [
        (1023, 1024, "vllm", INFERENCEX),
        (1000, 1000, "vllm", INFERENCEX),
        (9000, 1000, "vllm", INFERENCEX),
        (1024, 512, "vllm", EQUAL),
        (1000, 500, "vllm", EQUAL),
        (4000, 1000, "vllm", EQUAL),
        (130, 120, "vllm", EQUAL),
        (1000, 1000, "sglang", SWEEP),
        (1010, 1000, "sglang", SWEEP),
    ],
)
def test_lengths_that_nobody_published_have_the_nearest_client(
    isl: int, osl: int, engine: str, client: Protocol
) -> None:
    found = protocol_of(isl, osl, engine)
    assert dataclasses.replace(found, least_tokens=client.least_tokens) == client


def test_a_few_tokens_do_not_change_the_client_of_published_lengths() -> None:
    """142 ms at 1,024 + 1,024 against 270 ms with clients in step."""
    for stated in ((1024, 1024), (1024, 512)):
        own = predict_point(point(*stated)).ttft_ms
        for isl, osl in ((-1, 0), (1, 0), (0, -1), (-24, -24), (24, 24)):
            near = predict_point(point(stated[0] + isl, stated[1] + osl)).ttft_ms
            assert near == pytest.approx(own, rel=0.06)


def test_a_client_that_was_inferred_or_assumed_is_said() -> None:
    assert client_note(1024, 1024, "vllm") == ""
    assert predict_point(point(1024, 1024)).note == ""
    assert "vendor sweep (inferred): equal outputs" in predict_point(point(1024, 512)).note
    assert "InferenceX runs at 1024+1024, the nearest published" in predict_point(point(1023, 1024)).note
    assert "sweep (inferred) at 1024+512, the nearest" in client_note(1024, 700, "vllm")
    stated: tuple[Client, ...] = ("inferencex", "exact")
    assert {client_note(1024, 700, "vllm", client=client) for client in stated} == {""}


def test_a_stated_client() -> None:
    assert protocol_of(1024, 512, "vllm", client="inferencex") == INFERENCEX
    assert protocol_of(1024, 1024, "vllm", client="exact") == EXACT
    assert protocol_of(1024, 128, "trtllm", True, "exact") == dataclasses.replace(EXACT, whole_prompts=True)
    prompts, outputs = EXACT.lengths(1000, 50, 8)
    assert (set(prompts), set(outputs)) == ({1000}, {50})
