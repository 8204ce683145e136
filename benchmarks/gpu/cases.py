"""Each kernel with inputs, its torch reference, and the bytes and operations that it cannot do without.

Used by `benchmarks.gpu.kernels`, which measures, and by tests/gpu, which only checks. `Sizes` are those of one rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from codegen.kernels import moe_block_rows, moe_tiles, reference
from specs.document import DType
from specs.kernels import KernelSpec

TORCH = {DType.FP32: torch.float32, DType.FP16: torch.float16, DType.BF16: torch.bfloat16}
# Of the largest value: products accumulate in fp32 and are rounded once or twice to 8 or 11 bits.
TOLERANCE = {DType.FP32: 1e-4, DType.FP16: 4e-3, DType.BF16: 3e-2}
Launchers = Mapping[str, Callable[..., None]]


@dataclass(frozen=True)
class Sizes:
    """Shapes of the model's layer and of the batch."""

    hidden: int = 8192
    heads: int = 64
    kv_heads: int = 8
    head_dim: int = 128
    intermediate: int = 28672
    block_size: int = 16
    experts: int = 128
    experts_per_token: int = 8
    expert_hidden: int = 2048
    expert_intermediate: int = 768
    vocab: int = 128256
    chunk_tokens: int = 256
    prefill_tokens: int = 4096
    decode_sequences: int = 64
    decode_context: int = 4096


SMALL = Sizes(
    hidden=96, heads=8, kv_heads=2, head_dim=32, intermediate=80, experts=6, experts_per_token=2, expert_hidden=48,
    expert_intermediate=40, vocab=300, chunk_tokens=16, prefill_tokens=40, decode_sequences=5, decode_context=50,
)  # fmt: skip


@dataclass
class Case:
    """`launch(launchers)` runs the kernels once; `found()` is what they wrote, `wanted()` the reference."""

    name: str
    specs: list[KernelSpec]
    launch: Callable[[Launchers], None]
    found: Callable[[], Tensor]
    wanted: Callable[[], Tensor]
    bytes: float  # that must move
    flops: float = 0.0

    def error(self) -> float:
        """The largest difference, as a share of the largest value; infinite where something is NaN."""
        wanted = self.wanted().float()
        error = float((self.found().float() - wanted).abs().max()) / float(wanted.abs().max())
        return error if error == error else float("inf")


class Maker:
    """Makes the cases for one device, dtype and target."""

    def __init__(self, device: str, dtype: DType, target: str, sizes: Sizes = SMALL) -> None:
        self.device, self.dtype, self.target, self.sizes = device, dtype, target, sizes
        self.generator = torch.Generator(device).manual_seed(0)

    def cases(self) -> list[Case]:
        """All of them; about 20 GB of memory at the default sizes."""
        tokens, rows = self.sizes.prefill_tokens, self.sizes.decode_sequences
        cases = [make(count) for count in (rows, tokens) for make in (self.norm, self.rope, self.swiglu)]
        cases += [self.attention("prefill", [tokens], [tokens]), self.attention("prefill", *self._mixed())]
        for part in ("decode", "split"):
            cases.append(self.attention(part, [1] * rows, self._contexts()))
            cases.append(self.attention(part, [1], [self.sizes.decode_context]))
        cases += [self.experts(count) for count in (rows, tokens)]
        cases.append(self.sampling(rows))
        return cases

    def norm(self, tokens: int) -> Case:
        hidden = self.sizes.hidden
        x, residual, weight = self._new(tokens, hidden), self._new(tokens, hidden), self._new(hidden)
        out = torch.empty_like(x)
        spec = self._spec("add_rms_norm", {"hidden_size": hidden}, residual=True)
        wanted, _ = reference.add_rms_norm(x, residual, weight, 1e-5)
        before = residual.clone()

        def launch(kernels: Launchers) -> None:
            kernels[spec.name]((tokens,), out, x, residual, weight, 1e-5)

        def checked() -> Tensor:
            residual.copy_(before)  # a launch adds to it
            return wanted

        moved = 4 * tokens * hidden * x.element_size()
        return Case(f"add_rms_norm of {tokens} tokens", [spec], launch, lambda: out, checked, moved)

    def rope(self, tokens: int) -> Case:
        sizes = self.sizes
        heads, kv_heads, dim = sizes.heads, sizes.kv_heads, sizes.head_dim
        qkv = self._new(tokens, (heads + 2 * kv_heads) * dim)
        cache = torch.zeros(2, -(-tokens // sizes.block_size), sizes.block_size, kv_heads, dim).to(qkv)
        slots = torch.randperm(tokens, generator=self.generator, device=self.device)
        angles = torch.rand(tokens, dim // 2, generator=self.generator, device=self.device) * 6
        cosines, sines = angles.cos(), angles.sin()
        norms = (self._new(dim), self._new(dim), 1e-6)
        out = torch.empty(tokens, heads * dim, dtype=qkv.dtype, device=self.device)
        spec = self._spec("rope_kv_write", self._heads(), qk_norm=True)

        def found() -> Tensor:
            return torch.cat((out.flatten(), cache.flatten()))

        def launch(kernels: Launchers) -> None:
            kernels[spec.name]((tokens, kv_heads), out, qkv, cache[0], cache[1], slots, cosines, sines, *norms)

        def wanted() -> Tensor:
            other = torch.zeros_like(cache)
            query = reference.rope_kv_write(qkv, other[0], other[1], slots, cosines, sines, heads=heads, norms=norms)
            return torch.cat((query.flatten(), other.float().flatten()))

        moved = 2 * qkv.numel() * qkv.element_size() + 8 * angles.numel()
        return Case(f"qk_norm_rope_kv_write of {tokens} tokens", [spec], launch, found, wanted, moved)

    def swiglu(self, tokens: int) -> Case:
        size = self.sizes.intermediate
        gate_up = self._new(tokens, 2 * size)
        out = gate_up.new_empty(tokens, size)
        spec = self._spec("swiglu", {"intermediate_size": size})

        def launch(kernels: Launchers) -> None:
            kernels[spec.name](lambda meta: (tokens, -(-size // meta["BLOCK"])), out, gate_up)

        moved = 3 * out.numel() * out.element_size()
        return Case(f"swiglu of {tokens} tokens", [spec], launch, lambda: out, lambda: reference.swiglu(gate_up), moved)

    def attention(self, part: str, queries: list[int], lengths: list[int]) -> Case:
        sizes = self.sizes
        heads, kv_heads, dim = sizes.heads, sizes.kv_heads, sizes.head_dim
        used = [-(-length // sizes.block_size) for length in lengths]
        order = torch.randperm(sum(used), generator=self.generator, device=self.device).int()
        tables = torch.zeros(len(lengths), max(used), dtype=torch.int32, device=self.device)
        for row, blocks in enumerate(order.split(used)):
            tables[row, : len(blocks)] = blocks
        cache = self._new(2, sum(used), sizes.block_size, kv_heads, dim)
        query = self._new(sum(queries), heads * dim)
        out = torch.empty_like(query)
        start = torch.tensor([0, *queries], device=self.device).cumsum(0).int()
        kv = torch.tensor(lengths, device=self.device).int()
        scale, count, width = dim**-0.5, len(lengths), max(used)
        if part == "split":
            shapes = self._heads() | {"chunk_tokens": sizes.chunk_tokens}
            specs = [self._spec("paged_attention", shapes, name) for name in ("split", "reduce")]
            chunks = -(-max(lengths) // sizes.chunk_tokens)
            sums = torch.empty(count, heads, chunks, dim, device=self.device)
            lse = torch.empty(count, heads, chunks, device=self.device)

            def launch(kernels: Launchers) -> None:
                kernels[specs[0].name](
                    (count, kv_heads, chunks), sums, lse, query, cache[0], cache[1], tables, kv, scale, width, chunks
                )
                kernels[specs[1].name]((count, heads), out, sums, lse, kv, chunks)
        else:
            specs = [self._spec("paged_attention", self._heads(), part)]

            def launch(kernels: Launchers) -> None:
                kernels[specs[0].name](
                    lambda meta: (len(query) // meta["BLOCK_Q"] + count, kv_heads),
                    out, query, cache[0], cache[1], tables, start, kv, scale, count, width,
                )  # fmt: skip

        seen = sum(q * (length - q) + q * (q + 1) // 2 for q, length in zip(queries, lengths, strict=True))
        moved = 2.0 * query.numel() * query.element_size() + 2 * sum(lengths) * kv_heads * dim * query.element_size()
        return Case(
            f"paged_attention {part}, {count} sequences, {sum(queries)} tokens, {sum(lengths)} keys",
            specs,
            launch,
            lambda: out,
            lambda: reference.paged_attention(query, cache[0], cache[1], tables, start, kv, scale=scale),
            moved,
            4.0 * seen * heads * dim,
        )

    def experts(self, tokens: int) -> Case:
        """The layer from the router's logits to the sum over experts; expert 0 is never chosen."""
        sizes = self.sizes
        experts, chosen, hidden, inner = (
            sizes.experts, sizes.experts_per_token, sizes.expert_hidden, sizes.expert_intermediate
        )  # fmt: skip
        rows = moe_block_rows(tokens, experts, chosen)
        assignments = tokens * chosen
        tiles = moe_tiles(assignments, experts, rows)
        x, logits = self._new(tokens, hidden), self._new(tokens, experts)
        logits[:, 0] = -30.0
        up, down = self._new(experts, 2 * inner, hidden) / 16, self._new(experts, hidden, inner) / 16
        routed = {"experts": experts, "experts_per_token": chosen}
        sort = routed | {"block_rows": rows}
        combined = {"experts_per_token": chosen, "out_features": hidden}
        topk, count, order, gate_up, project, combine = specs = [
            self._spec("moe_route", routed, "topk", renormalise=True),
            self._spec("moe_route", routed, "count"),
            self._spec("moe_route", sort, "sort"),
            self._spec("grouped_gemm", sort | {"in_features": hidden, "out_features": inner}, "gate_up", swiglu=True),
            self._spec("grouped_gemm", sort | {"in_features": inner, "out_features": hidden}, "down"),
            self._spec("grouped_gemm", combined, "combine"),
        ]

        def integers(size: int) -> Tensor:
            return torch.empty(size, dtype=torch.int32, device=self.device)

        weights = torch.empty(tokens, chosen, device=self.device)
        ids, counts, lists = integers(assignments), integers(experts), [integers(assignments)]
        lists += [integers(tiles) for _ in range(3)]
        middle, partial, out = x.new_empty(assignments, inner), x.new_empty(assignments, hidden), torch.empty_like(x)

        def launch(kernels: Launchers) -> None:
            kernels[topk.name]((tokens,), weights, ids, logits)
            kernels[count.name]((experts,), counts, ids, assignments)
            kernels[order.name]((experts + 1,), *lists, ids, counts, assignments, tiles)
            kernels[gate_up.name](lambda meta: (tiles, -(-inner // meta["BLOCK_N"])), middle, x, up, *lists)
            kernels[project.name](
                lambda meta: (tiles, -(-hidden // meta["BLOCK_N"])), partial, middle, down, weights, *lists
            )
            kernels[combine.name](lambda meta: (tokens, -(-hidden // meta["BLOCK"])), out, partial)

        def wanted() -> Tensor:
            parts = []
            # Few tokens at a time: the reference gathers a whole expert for every assignment.
            for part, scores in zip(x.split(16), logits.split(16), strict=True):
                share, best = reference.moe_topk(scores, chosen, renormalise=True)
                inside = reference.moe_gate_up(part, up, best, fused=True).to(x.dtype)
                parts.append(reference.moe_combine(reference.moe_down(inside, down, share, best), chosen))
            return torch.cat(parts)

        touched = min(experts - 1, assignments)
        moved = 3.0 * touched * inner * hidden * x.element_size()
        name = f"mixture of experts of {tokens} tokens, tiles of {rows}"
        return Case(name, specs, launch, lambda: out, wanted, moved, 6.0 * assignments * inner * hidden)

    def sampling(self, rows: int) -> Case:
        """Half the rows greedy, half with temperature, top-k and top-p; the result is the token itself."""
        vocab = self.sizes.vocab
        logits = torch.randn(rows, vocab, generator=self.generator, device=self.device) * 2
        temperatures = torch.tensor([0.0, 0.8], device=self.device).repeat(rows)[:rows].contiguous()
        top_k = torch.full((rows,), min(50, vocab - 1), dtype=torch.int32, device=self.device)
        top_p = torch.full((rows,), 0.9, device=self.device)
        seeds, positions = (torch.arange(rows, device=self.device) + offset for offset in (10, 20))
        tokens, logprobs = torch.empty(rows, dtype=torch.int64, device=self.device), torch.empty(rows).to(self.device)
        spec = self._spec("sample", {"vocab_size": vocab}).model_copy(update={"dtype": DType.FP32})

        def launch(kernels: Launchers) -> None:
            kernels[spec.name]((rows,), tokens, logprobs, logits, temperatures, top_k, top_p, seeds, positions)

        def wanted() -> Tensor:
            settings = zip(
                temperatures.tolist(), top_k.tolist(), top_p.tolist(), seeds.tolist(), positions.tolist(), strict=True
            )
            drawn = [reference.sample(row, *setting)[0] for row, setting in zip(logits.cpu(), settings, strict=True)]
            return torch.tensor(drawn, device=self.device)

        return Case(f"sample of {rows} rows", [spec], launch, lambda: tokens, wanted, logits.numel() * 4.0)

    def _spec(self, family: str, shapes: dict[str, int], part: str = "", **flags: bool) -> KernelSpec:
        fields: dict[str, Any] = {"family": family, "part": part, "target": self.target, "dtype": self.dtype}
        return KernelSpec(**fields, shapes=shapes, flags=flags)

    def _new(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device).to(TORCH[self.dtype])

    def _heads(self) -> dict[str, int]:
        sizes = self.sizes
        return {
            "heads": sizes.heads, "kv_heads": sizes.kv_heads, "head_dim": sizes.head_dim, "block_size": sizes.block_size
        }  # fmt: skip

    def _contexts(self) -> list[int]:
        """From 1 token to the longest, unevenly."""
        rows, longest = self.sizes.decode_sequences, self.sizes.decode_context
        return [1 + (longest - 1) * row // max(1, rows - 1) for row in range(rows)]

    def _mixed(self) -> tuple[list[int], list[int]]:
        """A prompt's chunk beside decodes."""
        chunk = self.sizes.prefill_tokens // 4
        return [chunk, *[1] * len(self._contexts())], [3 * chunk, *self._contexts()]
