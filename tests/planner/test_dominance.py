"""A configuration is dropped as dominated only by one that no step and no cache makes worse."""

from __future__ import annotations

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st
from planning import H100, L40S, problem_of, text_of

from planner.candidates.dominance import drop_dominated
from planner.candidates.enumerate import families, model_length
from planner.candidates.family import Family
from planner.facts import load_facts
from specs.deployment import parse_deployment
from specs.plan import Limits

MODELS = "{small: {architecture: meta-llama/Llama-3.1-8B, weights: [bf16, fp8], kv_cache: [bf16, fp8]}}"


def bootable() -> list[Family]:
    spec = parse_deployment(text_of(models=MODELS, pools=(L40S, H100))).spec
    facts = load_facts(spec, ".")
    length = model_length("small", spec.models["small"], facts.architectures["small"], 2000)
    return families(
        "small", spec.models["small"], spec.choices.of("small"), ("vllm",), spec.hardware.pools, facts, length
    )[0]


FAMILIES = bootable()
KEPT, DROPPED = drop_dominated(FAMILIES)
PAIRS = [
    (victor, loser)
    for item in DROPPED
    for loser in FAMILIES
    if loser.configuration() == item.configuration
    for victor in FAMILIES
    if victor is not loser
    and (victor.pool, victor.layout) == (loser.pool, loser.layout)
    and f"{victor.weights_dtype} weights with a {victor.kv_dtype} KV cache" in item.detail
]


def test_something_is_dropped_and_every_loser_has_a_victor() -> None:
    assert DROPPED
    assert len(KEPT) + len(DROPPED) == len(FAMILIES)
    assert {loser.key for _, loser in PAIRS} == {f.key for f in FAMILIES} - {f.key for f in KEPT}
    staying = {(f.pool.name, f.layout) for f in KEPT}
    assert all((loser.pool.name, loser.layout) in staying for _, loser in PAIRS)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_dropped_configuration_is_never_faster_than_its_victor(data: st.DataObject) -> None:
    victor, loser = data.draw(st.sampled_from(PAIRS))
    decodes = data.draw(st.integers(0, 200))
    chunks = data.draw(st.integers(0 if decodes else 1, 4))
    new = data.draw(st.integers(1, 1000)) if chunks else 0
    context = decodes * data.draw(st.integers(1, 8000))
    batch = (decodes + chunks * new, decodes + chunks, decodes + chunks, decodes, context, 0, [(new, 0)] * chunks)
    assert victor.times.step_s(*batch) <= loser.times.step_s(*batch) * (1 + 1e-12)
    limits = Limits(max_num_seqs=data.draw(st.sampled_from([32, 256])), max_num_batched_tokens=2048, max_model_len=2000)
    mine, theirs = victor.cache(limits), loser.cache(limits)
    assert theirs is None or (mine is not None and mine.capacity_tokens >= theirs.capacity_tokens)


def test_of_equals_the_first_stays_and_different_devices_never_compete() -> None:
    first = FAMILIES[0]
    twin = dataclasses.replace(first, key="twin")
    kept, dropped = drop_dominated([first, twin])
    assert kept == [first]
    assert [item.reason for item in dropped] == ["dominated"]
    other = next(f for f in FAMILIES if f.pool != first.pool and f.layout == first.layout)
    assert drop_dominated([first, other])[1] == []


def test_a_slower_configuration_with_a_larger_cache_stays() -> None:
    fast = next(f for f in FAMILIES if f.key.endswith("bf16/kv-bf16"))
    small = next(
        f for f in FAMILIES if f.layout == fast.layout and f.pool == fast.pool and f.key.endswith("fp8/kv-fp8")
    )
    slowed = dataclasses.replace(small.times, sequence_s=1.0)
    kept, _ = drop_dominated([fast, dataclasses.replace(small, table=lambda: slowed)])
    assert len(kept) == 2


def test_problem_lists_the_dominated_with_the_rest() -> None:
    problem = problem_of(models=MODELS, pools=(L40S,))
    assert any(item.reason == "dominated" for item in problem.dropped)
