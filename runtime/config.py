"""From a bundle on disk to checked values: which group this process runs, its program, its numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from specs.architecture import Architecture, load_architecture
from specs.bundle import RUNTIME, RuntimeConfig, read_runtime_config, read_verified, verify_bundle
from specs.document import DType
from specs.errors import InputError, NotHonouredError
from specs.program import ProgramManifest
from specs.service import blocks_for

Backend = Literal["torch", "triton"]


@dataclass(frozen=True)
class ServedGroup:
    """One replica of one group, as this process runs it.

    `num_blocks` is the plan's number, or less where the plan's could never be used: `max_num_seqs` sequences of
    `max_model_len` tokens at most. Blocks are granted lowest id first from the start and last freed first later, so
    ids above that never occur and every decision is the same; a small model on a large memory stays small.
    """

    config: RuntimeConfig
    manifest: ProgramManifest
    folder: Path  # of the group, inside the bundle
    num_blocks: int
    source: bytes = field(repr=False)  # of the program, as its hash was checked

    @property
    def program(self) -> Path:
        return self.folder / self.manifest.module


def open_group(
    bundle: str | Path, group: str | None = None, backend: Backend = "torch", target: str | None = None
) -> ServedGroup:
    """Read and check a bundle; the group named, or the only one. `target`: of the GPU here, for backend triton.

    `InputError` names the file that is missing, damaged or does not match its hash, or the groups there are.
    `NotHonouredError` where one process cannot run the layout.
    """
    verified = verify_bundle(bundle)
    folder, config = read_runtime_config(bundle, group)
    if config.layout.gpus != 1:
        raise NotHonouredError(
            f"group {config.group!r} splits a replica over {config.layout.gpus} devices; this version compiles such "
            "groups, and serves a replica on one device",
            file=str(folder / RUNTIME),
            field="layout",
            expected="tensor_parallel: 1, attention_data_parallel: 1 and one entry in pipeline_stages",
        )
    own = config.triton_programs.get(target) if target is not None else None
    name = config.torch_program if backend == "torch" else own or config.triton_program
    if name is None:
        raise InputError(
            f"group {config.group!r} was compiled for {', '.join(config.targets)} only",
            file=str(folder / RUNTIME),
            field="targets",
            expected="a bundle compiled for this machine's GPU (`capstan compile --target`), or `--device cpu`",
        )
    manifest = ProgramManifest.read(folder / name)
    useful = config.limits.max_num_seqs * blocks_for(config.limits.max_model_len, config.cache.block_size_tokens)
    hashes = {record.path: record.sha256 for record in verified.files}
    source = read_verified(folder / manifest.module, hashes[f"{config.group}/{manifest.module}"])
    return ServedGroup(config, manifest, folder, min(config.cache.num_blocks, useful), source)


def refuse_other_model(directory: Path, served: ServedGroup) -> None:
    """`InputError` with the first key of the directory's config.json that makes it another model than was compiled.

    Only keys count that the architecture reads: names, dates, and how a checkpoint stores its floats may differ.
    """
    file = directory.resolve() / "config.json"
    compiled = load_architecture(served.folder.resolve() / served.config.config)
    given = load_architecture(file)
    if _same_model(compiled, given):
        return
    for key in dict.fromkeys((*compiled.config, *given.config)):
        if compiled.config.get(key) != given.config.get(key) and _decides(key, compiled, given):
            break
    raise InputError(
        f"is {given.config.get(key)!r}; the bundle was compiled for {compiled.config.get(key)!r}"[:300],
        file=str(file),
        field=key,
        expected=f"a checkpoint of {served.config.architecture}, or a bundle compiled for this one",
    )


def _same_model(one: Architecture, other: Architecture) -> bool:
    return replace(one, name="", compute_dtype=DType.FP32) == replace(other, name="", compute_dtype=DType.FP32)


def _decides(key: str, compiled: Architecture, given: Architecture) -> bool:
    """Whether the compiled config with this key as given is another model, or none."""
    changed = {name: value for name, value in compiled.config.items() if name != key}
    if key in given.config:
        changed[key] = given.config[key]
    try:
        return not _same_model(compiled, load_architecture(changed))
    except InputError:
        return True


def load_forward(program: Path, source: bytes) -> Callable[..., Any]:
    """`forward` of a generated program. `InputError` where it is no such program.

    `source` itself is compiled, never what Python may have cached beside the file; `program` is named in tracebacks.
    """
    module = ModuleType(f"capstan_program_{hashlib.sha256(source).hexdigest()[:16]}")
    try:
        exec(compile(source, str(program), "exec"), module.__dict__)  # made by codegen, checked against its hash
    except (SyntaxError, ValueError, ImportError) as error:
        raise InputError(f"does not load ({error})", file=str(program), expected="a generated program") from error
    forward = getattr(module, "forward", None)
    if not callable(forward):
        raise InputError("has no function `forward`", file=str(program), expected="a generated program")
    return forward  # type: ignore[no-any-return]


def torch_dtype(dtype: DType) -> Any:
    """The torch type of the same name; `NotHonouredError` for types that the runtime does not compute in."""
    import torch

    known = {DType.FP32: torch.float32, DType.FP16: torch.float16, DType.BF16: torch.bfloat16}
    if dtype not in known:
        raise NotHonouredError(
            f"the runtime does not hold {dtype.value} tensors in this version",
            expected=f"one of {', '.join(name.value for name in known)}",
        )
    return known[dtype]
