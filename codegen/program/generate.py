"""Fill the templates: a `RankModel` in, the source of a module and its manifest out. Same input, same bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import jinja2

from codegen.program.kernel_specs import SPLIT_CHUNK_TOKENS, ProgramKernels, program_kernels
from codegen.program.rank import RankLayer, RankModel, rank_model
from codegen.program.slots import weight_slots
from specs.architecture import Architecture
from specs.document import DType
from specs.plan import Layout
from specs.program import ProgramManifest

LINE = 120  # columns of generated code


@dataclass(frozen=True)
class GeneratedProgram:
    """One module: its text, and what the runtime must know to call it."""

    source: str
    manifest: ProgramManifest
    model: RankModel
    kernels: ProgramKernels | None = None  # of a program over Triton kernels


def generate_program(
    architecture: Architecture,
    layout: Layout,
    *,
    compute_dtype: DType,
    kv_dtype: DType,
    block_size_tokens: int,
    where: str = "engine capstan",
) -> GeneratedProgram:
    """The forward program of one rank in plain torch. `NotHonouredError` names what has no program in this version.

    `where` stands before the message of an error: the field or the group of the plan.
    """
    model = rank_model(
        architecture,
        layout,
        compute_dtype=compute_dtype,
        kv_dtype=kv_dtype,
        block_size_tokens=block_size_tokens,
        where=where,
    )
    source = environment().get_template("torch_program.py.j2").render(model=template_values(model))
    return GeneratedProgram(source, program_manifest(model, "torch"), model)


def generate_triton_program(
    model: RankModel,
    *,
    target: str,
    multiprocessors: int,
    max_num_batched_tokens: int,
    split_chunk_tokens: int = SPLIT_CHUNK_TOKENS,
    where: str = "engine capstan",
) -> GeneratedProgram:
    """The same program over Triton kernels. `InputError` where a shape has no kernel.

    `multiprocessors` of the device and `max_num_batched_tokens` decide which of several kernels a step runs; `target`
    does not change the program.
    """
    kernels = program_kernels(
        model,
        target=target,
        multiprocessors=multiprocessors,
        max_num_batched_tokens=max_num_batched_tokens,
        split_chunk_tokens=split_chunk_tokens,
        where=where,
    )
    values = {
        "constants": "".join(_assignment(constant, spec.name) for constant, spec in kernels.names.items()),
        "chunk_tokens": kernels.split_chunk_tokens,
        "split_below": kernels.split_below_sequences,
        "tilings": kernels.tilings,
    }
    template = environment().get_template("triton_program.py.j2")
    source = template.render(model=template_values(model), kernels=values)
    return GeneratedProgram(source, program_manifest(model, "triton", kernels), model, kernels)


def _assignment(constant: str, text: str) -> str:
    """`constant = "text"`, broken as a formatter would where the line is too long."""
    line = f'{constant} = "{text}"'
    return f"{line}\n" if len(line) <= LINE else f'{constant} = (\n    "{text}"\n)\n'


def program_manifest(
    model: RankModel, backend: Literal["torch", "triton"], kernels: ProgramKernels | None = None
) -> ProgramManifest:
    """What a runtime must know to call the program."""
    return ProgramManifest(
        family=model.architecture.family,
        module=f"program_{backend}.py",
        backend=backend,
        tensor_parallel=model.tensor_parallel,
        compute_dtype=model.compute_dtype,
        kv_dtype=model.kv_dtype,
        layers=len(model.layers),
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        block_size_tokens=model.block_size_tokens,
        vocab_size=model.architecture.vocab_size,
        slots=weight_slots(model),
        kernels=() if kernels is None else tuple(spec.name for spec in kernels.specs),
        sample_kernel=None if kernels is None else kernels.sample.name,
    )


@cache
def environment() -> jinja2.Environment:
    """Templates of programs; a name that a template misses is an error, not an empty string."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("codegen.program"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def template_values(model: RankModel) -> dict[str, Any]:
    """The values that templates read, as they are printed."""
    architecture, rope = model.architecture, model.rope
    parameters = dict(rope.parameters)
    sparse = model.sparse
    cast = model.kv_dtype != model.compute_dtype
    return {
        # A name comes from the user: nothing of it may end the docstring that it stands in.
        "title": re.sub(r"[^A-Za-z0-9._/+ -]", "_", architecture.name)[:80] or "a model",
        "family": architecture.family,
        "ranks": model.tensor_parallel,
        "heads": model.heads,
        "kv_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "block_size": model.block_size_tokens,
        "windows": tuple((_window_name(model, window), window) for window in model.windows),
        "any_full": model.any_full,
        "eps": repr(architecture.rms_norm_eps),
        "rope_kind": rope.kind,
        "rope_theta": repr(rope.theta),
        "rope_factor": repr(parameters.get("factor", 1.0)),
        "rope_low": repr(parameters.get("low_freq_factor", 1.0)),
        "rope_high": repr(parameters.get("high_freq_factor", 4.0)),
        "rope_original": repr(parameters.get("original_max_position_embeddings", architecture.max_position_embeddings)),
        "hidden_size": architecture.hidden_size,
        "vocab_size": architecture.vocab_size,
        "vocab_shard": model.vocab_shard,
        "head_slot": "embed_tokens" if architecture.tied_embeddings else "lm_head",
        "qk_norm": model.qk_norm,
        "sparse": bool(sparse),
        "dense": bool(model.dense),
        "experts": sparse[0].experts if sparse else 0,
        "experts_per_token": sparse[0].experts_per_token if sparse else 0,
        "normalise": sparse[0].normalise if sparse else False,
        "to_cache": ".to(cache.dtype)" if cast else "",
        "from_cache": ".to(dtype)" if cast else "",
        "cast": cast,
        "layers": tuple(_layer_values(model, layer) for layer in model.layers),
    }


def _layer_values(model: RankModel, layer: RankLayer) -> dict[str, Any]:
    window = None if layer.window is None else _window_name(model, layer.window)
    return {
        "index": layer.index,
        "prefix": layer.prefix,
        "comment": _comment(layer),
        "qkv_bias": layer.qkv_bias,
        "output_bias": layer.output_bias,
        "mlp_bias": layer.mlp_bias,
        "qk_norm": layer.qk_norm,
        "experts": layer.experts,
        "intermediate_size": layer.intermediate_size,
        "window": window,
        "visible": "visible" if window is None else f"{window.lower()}_visible",
    }


def _window_name(model: RankModel, window: int) -> str:
    return "WINDOW" if len(model.windows) == 1 else f"WINDOW_{window}"


def _comment(layer: RankLayer) -> str:
    attention = f"{layer.heads} heads on {layer.kv_heads} KV heads"
    if layer.window is not None:
        attention += f" in a window of {layer.window}"
    if not layer.experts:
        return f"Layer {layer.index}: {attention}; MLP of {layer.intermediate_size}."
    experts = f"{layer.experts_per_token} of {layer.experts} experts of {layer.intermediate_size}"
    return f"Layer {layer.index}: {attention}; {experts}."
