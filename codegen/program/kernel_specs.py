"""Which kernels the program over Triton launches, under the names that it calls them by."""

from __future__ import annotations

from dataclasses import dataclass

from codegen.kernels import moe_block_rows
from codegen.program.rank import RankModel
from specs.document import DType
from specs.errors import InputError
from specs.kernels import KernelFamily, KernelSpec, reason_against

# KV tokens of one program of split attention: enough programs for a device from a few thousand tokens on, and each
# still reads 64 KB and more (256 x 128 x 2 bytes). Predicted, not measured.
SPLIT_CHUNK_TOKENS = 256


@dataclass(frozen=True)
class MoeTiling:
    """Kernels of the grouped products in steps of at most `max_tokens` tokens."""

    max_tokens: int
    block_rows: int  # assignments of one tile


@dataclass(frozen=True)
class ProgramKernels:
    """`names`: constant in the program -> spec, in the order in which a layer launches them. `sample` is the runtime's
    to launch, on the program's logits."""

    names: dict[str, KernelSpec]
    sample: KernelSpec
    split_chunk_tokens: int
    split_below_sequences: int  # a decode step of fewer sequences leaves multiprocessors idle unless KV is split
    tilings: tuple[MoeTiling, ...]  # ascending; () without experts

    @property
    def specs(self) -> tuple[KernelSpec, ...]:
        """Each kernel of the program once."""
        return tuple({spec.name: spec for spec in self.names.values()}.values())


def program_kernels(
    model: RankModel,
    *,
    target: str,
    multiprocessors: int,
    max_num_batched_tokens: int,
    split_chunk_tokens: int = SPLIT_CHUNK_TOKENS,
    where: str,
) -> ProgramKernels:
    """The kernels of one rank. `InputError` with the capability table's reason where a shape has none."""
    hidden = model.architecture.hidden_size
    heads = {
        "heads": model.heads,
        "kv_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "block_size": model.block_size_tokens,
    }
    names: dict[str, KernelSpec] = {}

    def checked(spec: KernelSpec) -> KernelSpec:
        reason = reason_against(spec)
        if reason is not None:
            raise InputError(f"no kernel for {model.architecture.name}: {reason}", field=where, expected="target cpu")
        return spec

    def add(
        constant: str, family: KernelFamily, shapes: dict[str, int], part: str = "", cached: bool = False, **flags: bool
    ) -> None:
        spec = KernelSpec(
            family=family,
            part=part,
            target=target,
            dtype=model.compute_dtype,
            kv_dtype=model.kv_dtype if cached else None,
            shapes=shapes,
            flags={name: value for name, value in flags.items() if value},
        )
        names[constant] = checked(spec)

    add("RMS_NORM", KernelFamily.ADD_RMS_NORM, {"hidden_size": hidden})
    add("ADD_RMS_NORM", KernelFamily.ADD_RMS_NORM, {"hidden_size": hidden}, residual=True)
    add("ROPE_KV_WRITE", KernelFamily.ROPE_KV_WRITE, heads, cached=True, qk_norm=model.qk_norm)
    split_below = 0
    if model.any_full:
        # Two programs for each multiprocessor hide each other's loads; a program is one (sequence, KV head).
        split_below = -(-2 * multiprocessors // model.kv_heads)
        chunked = heads | {"chunk_tokens": split_chunk_tokens}
        add("ATTENTION_PREFILL", KernelFamily.PAGED_ATTENTION, heads, "prefill", cached=True)
        add("ATTENTION_DECODE", KernelFamily.PAGED_ATTENTION, heads, "decode", cached=True)
        add("ATTENTION_SPLIT", KernelFamily.PAGED_ATTENTION, chunked, "split", cached=True)
        add("ATTENTION_REDUCE", KernelFamily.PAGED_ATTENTION, chunked, "reduce", cached=True)
    for window in model.windows:
        suffix = "WINDOW" if len(model.windows) == 1 else f"WINDOW_{window}"
        for part in ("prefill", "decode"):
            shapes = heads | {"window": window}
            add(f"{suffix}_{part.upper()}", KernelFamily.PAGED_ATTENTION, shapes, part, cached=True)
    for layer in model.dense[:1]:
        add("SWIGLU", KernelFamily.SWIGLU, {"intermediate_size": layer.intermediate_size})
    tilings: tuple[MoeTiling, ...] = ()
    for layer in model.sparse[:1]:
        tilings = moe_tilings(max_num_batched_tokens, layer.experts, layer.experts_per_token)
        chosen = {"experts_per_token": layer.experts_per_token}
        routed = chosen | {"experts": layer.experts}
        add("MOE_TOPK", KernelFamily.MOE_ROUTE, routed, "topk", renormalise=layer.normalise)
        add("MOE_COUNT", KernelFamily.MOE_ROUTE, routed, "count")
        up = routed | {"in_features": hidden, "out_features": layer.intermediate_size}
        down = routed | {"in_features": layer.intermediate_size, "out_features": hidden}
        for rows in (tiling.block_rows for tiling in tilings):
            tile = {"block_rows": rows}
            add(f"MOE_SORT_{rows}", KernelFamily.MOE_ROUTE, routed | tile, "sort")
            add(f"MOE_GATE_UP_{rows}", KernelFamily.GROUPED_GEMM, up | tile, "gate_up", swiglu=True)
            add(f"MOE_DOWN_{rows}", KernelFamily.GROUPED_GEMM, down | tile, "down")
        add("MOE_COMBINE", KernelFamily.GROUPED_GEMM, chosen | {"out_features": hidden}, "combine")
    vocabulary = {"vocab_size": model.architecture.vocab_size}
    sample = checked(KernelSpec(family=KernelFamily.SAMPLE, target=target, dtype=DType.FP32, shapes=vocabulary))
    return ProgramKernels(names, sample, split_chunk_tokens, split_below, tilings)


def moe_tilings(max_tokens: int, experts: int, experts_per_token: int) -> tuple[MoeTiling, ...]:
    """Token counts at which `moe_block_rows` changes, up to `max_tokens`; each with the largest step it serves."""
    tilings: list[MoeTiling] = []
    low = 1
    while low <= max_tokens:
        rows = moe_block_rows(low, experts, experts_per_token)
        high, beyond = low, max_tokens + 1  # bisection: block_rows never falls as tokens grow
        while beyond - high > 1:
            middle = (high + beyond) // 2
            if moe_block_rows(middle, experts, experts_per_token) == rows:
                high = middle
            else:
                beyond = middle
        tilings.append(MoeTiling(high, rows))
        low = high + 1
    return tuple(tilings)
