"""What speculative decoding costs: the time of drafts, and the memory of who drafts.

Looking up n-grams takes no time of the device. A draft model proposes its tokens one after the other, each in a step of
its own; EAGLE's and MTP's heads are one more layer of the model with its output head. A step of drafts is taken at
`SEQUENCES` sequences that have half of the longest request behind them, whatever the batch is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.cost.power_cap import cap_of
from planner.cost.step import step_times
from planner.cost.step_times import StepTimes
from specs.architecture import Architecture, weight_bytes_per_rank
from specs.deployment import SpeculativeSpec
from specs.plan import Layout, MemoryBudget, Speculation

if TYPE_CHECKING:
    from planner.candidates.family import Family

SEQUENCES = 64


@dataclass(frozen=True)
class Draft:
    """Who drafts, on one rank: its weights, its keys and values per token, seconds per proposed token."""

    weights_bytes: int = 0
    kv_bytes_per_token: float = 0.0
    token_s: float = 0.0

    def taken_from(self, budget: MemoryBudget) -> MemoryBudget:
        """What is left of a rank's memory beside the draft; its keys and values lie in the same blocks."""
        return budget.model_copy(
            update={
                "draft_bytes": self.weights_bytes,
                "kv_bytes": max(0, budget.kv_bytes - self.weights_bytes),
                "kv_bytes_per_token": budget.kv_bytes_per_token + self.kv_bytes_per_token,
            }
        )


NO_DRAFT = Draft()


def draft_lengths(spec: SpeculativeSpec) -> tuple[int, ...]:
    """Numbers of tokens to propose: powers of two and the most that is declared; none where none is accepted."""
    if spec.acceptance == 0.0:
        return ()
    most = spec.max_draft
    return tuple(sorted({most, *(2**power for power in range(most.bit_length()) if 2**power <= most)}))


def speculation_of(spec: SpeculativeSpec, drafts: int, draft: Draft) -> Speculation:
    return Speculation(draft_tokens=drafts, acceptance=spec.acceptance, draft_s=drafts * draft.token_s)


def draft_of(spec: SpeculativeSpec, family: Family, drafting: Architecture | None) -> Draft:
    """Who drafts for a replica of `family`, which has no draft yet; `drafting`: the model of the method `draft`."""
    if spec.method == "ngram":
        return NO_DRAFT
    return _last_layer(family) if drafting is None else _draft_model(family, drafting)


def _draft_model(family: Family, drafting: Architecture) -> Draft:
    """A model of its own on as many ranks, or on one where it cannot be split so."""
    tensor, kv_dtype, weights = family.layout.tensor_parallel, family.kv_dtype, drafting.native_weights_dtype
    if drafting.tensor_parallel_obstacle(tensor) is not None:
        tensor = 1
    layout = Layout(tensor_parallel=tensor, pipeline_stages=(len(drafting.layers),))
    device, profile, engine = family.device, family.profile, family.engine
    cap = cap_of(family.pool, device)
    times = step_times(drafting, layout, weights, kv_dtype, device, profile, engine, SEQUENCES, SEQUENCES, cap=cap)
    context, seen = _contexts(times, family.max_model_len // 2)
    kv_bytes = drafting.kv_bytes_per_token(kv_dtype, tensor) + drafting.window_kv_bytes_per_token(kv_dtype, tensor)
    token_s = times.step_s(SEQUENCES, SEQUENCES, SEQUENCES, SEQUENCES, context, seen, ())
    return Draft(weight_bytes_per_rank(drafting, weights, tensor), kv_bytes, token_s)


def _last_layer(family: Family) -> Draft:
    """One layer more, as the last one is, and the output head, which is shared."""
    architecture, layout, times = family.architecture, family.layout, family.times
    layers = len(architecture.layers)
    last = range(layers - 1, layers)
    context, seen = _contexts(times, family.max_model_len // 2)
    all_s = times.tokens_s[SEQUENCES] - family.engine.step_overhead_s + times.decode_s(SEQUENCES, context, seen)
    weights_bytes = weight_bytes_per_rank(
        architecture,
        family.weights_dtype,
        layout.tensor_parallel,
        layout.expert_parallel,
        last,
        False,
        False,
        layout.attention_data_parallel,
    )
    kv_bytes = architecture.kv_bytes_per_token(family.kv_dtype, layout.tensor_parallel, last)
    return Draft(weights_bytes, kv_bytes, all_s / layers + times.sampled_s[SEQUENCES])


def _contexts(times: StepTimes, keys: int) -> tuple[int, int]:
    """Keys that `SEQUENCES` sequences read together: in layers of full attention, in windowed ones."""
    window = times.window_tokens
    return SEQUENCES * keys, 0 if window is None else SEQUENCES * min(keys, window)
