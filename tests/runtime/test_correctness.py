"""What comes out of the engine is what transformers computes: every family, every way a batch can be composed."""

# ruff: noqa: E402 - what is imported needs packages that may be absent; then the file is skipped
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from served import Collected, checkpoint_engine, greedy, limits, run_all
from tiny_checkpoints import FAMILIES, VARIANTS, VOCAB_SIZE, make_checkpoint, reference_logits

from runtime.request import SamplingParams

OTHERS = ("llama-tied", "llama-rope3", "qwen3-moe-mixed", "qwen2-window")


def check(folder, requests: dict[str, tuple[list[int], Collected]]) -> None:
    """Every returned log-probability, and all the likeliest ones, against the reference on the same tokens."""
    sequences = [prompt + sink.ids for prompt, sink in requests.values()]
    for (prompt, sink), logits in zip(requests.values(), reference_logits(folder, sequences), strict=True):
        expected = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
        assert sink.ids
        for row, output in zip(expected, sink, strict=True):
            sampled = output.sampled
            assert sampled is not None
            assert sampled.logprob == pytest.approx(float(row[sampled.token]), abs=2e-4)
            best = torch.topk(row, len(sampled.top)).values
            assert [top.logprob for top in sampled.top] == pytest.approx(best.tolist(), abs=2e-4)
            assert [float(row[top.token]) for top in sampled.top] == pytest.approx(best.tolist(), abs=2e-4)


def serve(engine, prompts: dict[str, list[int]], tokens: int, every: int = 0) -> dict[str, tuple[list[int], Collected]]:
    """Add one request every `every` steps (0: all at once), so that prefills meet decodes."""
    found = {}
    for name, prompt in prompts.items():
        sink = Collected()
        engine.add_request(name, prompt, greedy(tokens, logprobs=4), sink)
        found[name] = (prompt, sink)
        for _ in range(every):
            engine.step()
    run_all(engine)
    return found


def prompts(*lengths: int) -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(7)
    return {
        str(index): torch.randint(0, VOCAB_SIZE, (length,), generator=generator).tolist()
        for index, length in enumerate(lengths)
    }


@pytest.mark.parametrize("variant", [*FAMILIES, *OTHERS])
def test_logits_of_mixed_batches_with_chunked_prefill(variant, tmp_path):
    """Budget 16: a prompt of 41 takes three chunks, while others decode beside it."""
    assert variant in VARIANTS
    folder = make_checkpoint(tmp_path / "model", variant)
    engine = checkpoint_engine(folder, tmp_path, engine_limits=limits(seqs=4, budget=16))
    check(folder, serve(engine, prompts(1, 41, 16, 5, 17), tokens=9, every=2))
    assert engine.stats().blocks_used == 0


@pytest.mark.parametrize("policy", ["mixed_chunked", "prefill_first"])
def test_logits_survive_preemption(policy, tmp_path):
    folder = make_checkpoint(tmp_path / "model", "llama")
    engine = checkpoint_engine(
        folder, tmp_path, blocks=12, block_size=4, engine_limits=limits(seqs=4, budget=16, length=48), policy=policy
    )
    found = serve(engine, prompts(11, 9, 13), tokens=12)
    assert engine.stats().preemptions > 0
    check(folder, found)


def test_a_request_gives_the_same_alone_and_in_company(tmp_path):
    folder = make_checkpoint(tmp_path / "model", "qwen3")
    asked = prompts(20, 3, 30)
    params = SamplingParams(max_tokens=10, temperature=0.8, top_p=0.95, seed=11, ignore_eos=True)
    results = []
    for company in (False, True):
        engine = checkpoint_engine(folder, tmp_path, engine_limits=limits(seqs=4, budget=16))
        sink = Collected()
        if company:
            engine.add_request("1", asked["1"], greedy(15), Collected())
            engine.step()
        engine.add_request("0", asked["0"], params, sink)
        if company:
            engine.add_request("2", asked["2"], greedy(15), Collected())
        run_all(engine)
        results.append(sink.ids)
    assert results[0] == results[1]
