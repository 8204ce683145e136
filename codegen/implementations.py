"""Which implementation runs in steps of which size, as predicted; a measured choice may override it later."""

from __future__ import annotations

from collections.abc import Iterator

from codegen.program.kernel_specs import ProgramKernels
from specs.bundle import Implementation
from specs.plan import ReplicaGroup


def predicted_implementations(group: ReplicaGroup, kernels: ProgramKernels) -> tuple[Implementation, ...]:
    """Per operator group the kernel of each batch bucket, smallest first: what the generated program chooses itself."""
    seqs, tokens = group.limits.max_num_seqs, group.limits.max_num_batched_tokens
    found = [*_full_attention(kernels, seqs, tokens), *_windowed_attention(kernels, seqs, tokens)]
    for tiling in kernels.tilings:
        found.append(
            Implementation(
                operators="experts",
                max_sequences=min(seqs, tiling.max_tokens),
                max_tokens=tiling.max_tokens,
                implementation=kernels.names[f"MOE_GATE_UP_{tiling.block_rows}"].name,
                reason=f"tiles of {tiling.block_rows} rows, by the mean number of tokens of an expert",
            )
        )
    return tuple(found)


def _full_attention(kernels: ProgramKernels, seqs: int, tokens: int) -> Iterator[Implementation]:
    if "ATTENTION_PREFILL" not in kernels.names:
        return
    split = min(seqs, kernels.split_below_sequences - 1)
    if split:
        yield Implementation(
            operators="attention, decode step",
            max_sequences=split,
            max_tokens=split,
            implementation=kernels.names["ATTENTION_SPLIT"].name,
            reason=f"contexts over {kernels.split_chunk_tokens} tokens are split, or the device would not be full",
        )
    yield Implementation(
        operators="attention, decode step",
        max_sequences=seqs,
        max_tokens=seqs,
        implementation=kernels.names["ATTENTION_DECODE"].name,
        reason="one program for a sequence and KV head fills the device, or contexts are short",
    )
    yield Implementation(
        operators="attention, step with prompts",
        max_sequences=seqs,
        max_tokens=tokens,
        implementation=kernels.names["ATTENTION_PREFILL"].name,
    )


def _windowed_attention(kernels: ProgramKernels, seqs: int, tokens: int) -> Iterator[Implementation]:
    for constant, spec in kernels.names.items():
        if constant.startswith("WINDOW"):
            decode = constant.endswith("_DECODE")
            yield Implementation(
                operators=f"attention in a window of {spec.shapes['window']}, "
                + ("decode step" if decode else "step with prompts"),
                max_sequences=seqs,
                max_tokens=seqs if decode else tokens,
                implementation=spec.name,
            )
