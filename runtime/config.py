"""From a bundle on disk to checked values: which group this process runs, its program, its numbers."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from specs.bundle import RUNTIME, RuntimeConfig, read_runtime_config, verify_bundle
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

    @property
    def program(self) -> Path:
        return self.folder / self.manifest.module


def open_group(bundle: str | Path, group: str | None = None, backend: Backend = "torch") -> ServedGroup:
    """Read and check a bundle; the group named, or the only one.

    `InputError` names the file that is missing, damaged or does not match its hash, or the groups there are.
    `NotHonouredError` where one process cannot run the layout.
    """
    verify_bundle(bundle)
    folder, config = read_runtime_config(bundle, group)
    if config.layout.gpus != 1:
        raise NotHonouredError(
            f"group {config.group!r} splits a replica over {config.layout.gpus} devices; this version serves a replica "
            "on one device",
            file=str(folder / RUNTIME),
            field="layout",
            expected="tensor_parallel: 1 and pipeline_parallel: 1",
        )
    name = config.torch_program if backend == "torch" else config.triton_program
    if name is None:
        raise InputError(
            f"group {config.group!r} was compiled for {', '.join(config.targets)} only",
            file=str(folder / RUNTIME),
            field="targets",
            expected="a bundle compiled for this machine's GPU (`capstan compile --target`), or `--device cpu`",
        )
    manifest = ProgramManifest.read(folder / name)
    useful = config.limits.max_num_seqs * blocks_for(config.limits.max_model_len, config.cache.block_size_tokens)
    return ServedGroup(config, manifest, folder, min(config.cache.num_blocks, useful))


def load_forward(program: Path) -> Callable[..., Any]:
    """`forward` of a generated program, loaded by path. `InputError` where the file is no such program."""
    name = f"capstan_program_{abs(hash(str(program.resolve()))):x}"
    described = importlib.util.spec_from_file_location(name, program)
    if described is None or described.loader is None or not program.is_file():
        raise InputError("is missing", file=str(program), expected="a generated program")
    module = importlib.util.module_from_spec(described)
    sys.modules[name] = module
    try:
        described.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
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
