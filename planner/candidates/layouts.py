"""Layouts of one stage that are worth a try: tensor parallelism, with experts cut or spread, with attention apart."""

from __future__ import annotations

from collections.abc import Iterator

from specs.architecture import Architecture
from specs.architecture.mixers import Attention, LatentAttention
from specs.architecture.mlps import MixtureOfExperts
from specs.deployment import ModelChoices, PoolSpec
from specs.engine_rules import capable


def is_mixture(architecture: Architecture) -> bool:
    """Whether any layer is a mixture of experts."""
    return any(isinstance(layer.mlp, MixtureOfExperts) for layer, _ in architecture.distinct_layers)


def kv_ranks(architecture: Architecture) -> int | None:
    """Tensor-parallel ranks beyond which KV caches are repeated; 1 for latent attention, None where there is no cache.

    The least of all layers: where one repeats its cache already, attention data parallelism saves memory.
    """
    mixers = [layer.mixer for layer, _ in architecture.distinct_layers]
    heads = [1 for mixer in mixers if isinstance(mixer, LatentAttention)]
    heads += [mixer.kv_heads for mixer in mixers if isinstance(mixer, Attention)]
    return min(heads, default=None)


def rank_layouts(
    architecture: Architecture, choices: ModelChoices, engine: str, pool: PoolSpec, tensor: int, pipeline: int
) -> Iterator[tuple[int, int]]:
    """(attention data-parallel, expert-parallel) sizes beside `tensor` ranks in each of `pipeline` stages.

    Experts are cut over all ranks of a stage or spread over all. Attention is split by requests only in mixtures (the
    others gain nothing over more replicas), over a whole node or two, where tensor parallelism is as wide as KV heads
    go: wider, caches would be repeated. Pins replace these rules.
    """
    mixture = is_mixture(architecture)
    groups = choices.attention_data_parallel or _attention_groups(architecture, mixture, engine, pool, tensor, pipeline)
    for group in groups:
        if group > 1 and not (mixture and capable(engine, "attention_data_parallel")):
            continue
        ranks = tensor * group
        spread = (1,) if not mixture or engine == "capstan" else (ranks,) if group > 1 else (1, ranks)
        for experts in choices.expert_parallel or dict.fromkeys(spread):
            yield group, experts


def _attention_groups(
    architecture: Architecture, mixture: bool, engine: str, pool: PoolSpec, tensor: int, pipeline: int
) -> tuple[int, ...]:
    widest = kv_ranks(architecture)
    if not mixture or pipeline > 1 or widest is None or tensor != min(widest, pool.gpus_per_node):
        return (1,)
    node = pool.gpus_per_node
    sizes = (node // tensor, 2 * node // tensor)
    return (1, *(size for size in sizes if size > 1 and (size * tensor) % node == 0))
