"""What one rank runs of a mixture of experts: its own experts, and the exchange of tokens with the other ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from planner.cost.latency import ExpertShape
from planner.cost.moe import expected_experts
from planner.cost.rank import Rank
from planner.cost.roofline import ACTIVATION_BYTES, weight_bytes_per_element
from planner.cost.step_work import Cost, Operation, StepShape, nothing
from planner.cost.transfer import Phase, expert_all_to_all_s
from specs.architecture.operators import Experts
from specs.document import DType


def routed(rank: Rank, operator: Experts, count: int) -> Iterator[Operation]:
    """The experts of this rank, and what brings tokens to them and back where attention is replicated."""
    expert_ranks = rank.layout.expert_parallel
    tensor_ranks = max(1, rank.expert_world // expert_ranks)
    experts, width = operator.rank_shape(tensor_ranks, expert_ranks)
    dtype = rank.weights if operator.quantised else rank.plain
    kernel = ExpertShape(
        operator.experts,
        operator.experts_per_token,
        operator.hidden_size,
        width,
        operator.gated,
        dtype,
        expert_ranks,
        tensor_ranks,
        dtype is DType.FP8 and rank.architecture.quantisation_block > 1,
    )
    matrices = 3 if operator.gated else 2
    expert_elements = float(matrices * operator.hidden_size * width)

    def cost(shape: StepShape) -> Cost:
        tokens = shape.tokens  # of all attention replicas: their experts are shared
        if not tokens.any():
            return nothing(tokens)
        rows = tokens * operator.experts_per_token / expert_ranks
        touched = np.minimum(
            expected_experts(tokens, operator.experts, operator.experts_per_token) / expert_ranks, experts
        )
        moved = touched * expert_elements * weight_bytes_per_element(dtype)
        moved = moved + rows * (2.0 * operator.hidden_size + matrices * width) * ACTIVATION_BYTES
        fullest = np.maximum(tokens * _skew_beside_tables(rank, expert_ranks), 1.0)
        seconds = np.where(tokens > 0, rank.latency.experts(fullest, kernel), 0.0)
        return Cost(2.0 * rows * expert_elements, moved, seconds)

    if rank.layout.attention_data_parallel == 1:
        yield Operation("experts", "experts", dtype, "experts", count, cost)
        return
    exchange = operator.experts_per_token if expert_ranks == rank.expert_world else 0
    yield _exchange(rank, "dispatch", operator.hidden_size, exchange, count)
    yield Operation("experts", "experts", dtype, "experts", count, cost)
    yield _exchange(rank, "combine", operator.hidden_size, exchange, count)


def _skew_beside_tables(rank: Rank, expert_ranks: int) -> float:
    """Tokens of the fullest rank as a multiple of those that the tables' router sends there."""
    if rank.expert_skew is None or expert_ranks == 1:
        return 1.0
    return rank.expert_skew / rank.latency.router_skew(expert_ranks)


def _exchange(rank: Rank, name: str, hidden_size: int, copies: int, count: int) -> Operation:
    """Tokens of the attention replicas to the experts' ranks (dispatch) or back (combine).

    All tokens gathered by (or scattered from) every rank; where each rank holds whole experts (`copies` of a token
    are wanted), sent to just those, as the router spreads them, if that is faster.
    """
    world, latency, device = rank.expert_world, rank.latency, rank.device
    skew = latency.router_skew(world) if rank.expert_skew is None else rank.expert_skew
    phase: Phase = "dispatch" if name == "dispatch" else "combine"

    def cost(shape: StepShape) -> Cost:
        everything = shape.tokens * hidden_size * ACTIVATION_BYTES
        gather = latency.all_gather if phase == "dispatch" else latency.reduce_scatter
        moved, seconds = everything, gather(everything, world)
        if copies:
            sent = rank.own(shape.tokens) * min(copies, world) * hidden_size * ACTIVATION_BYTES * skew
            direct = expert_all_to_all_s(
                shape.tokens, copies, hidden_size, ACTIVATION_BYTES, world, device, phase, skew=skew
            )
            moved, seconds = np.where(direct < seconds, sent, moved), np.minimum(direct, seconds)
        return Cost(np.zeros_like(moved), moved, np.where(shape.tokens > 0, seconds, 0.0))

    return Operation(name, "collective", rank.plain, "ranks", count, cost)
