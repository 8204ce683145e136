"""The `Bundle` documents: what a plan was compiled to. A manifest, and one `RuntimeConfig` per compiled replica group.

    bundle/manifest.json    `Bundle`: where it comes from, and the hash of every other file
    bundle/plan.json
    bundle/GROUP/           one folder per replica group whose engine is `capstan`: runtime.json and what it names

The runtime enforces the numbers of the plan, so a `RuntimeConfig` repeats them instead of pointing at the plan. A
group whose engine is vllm, sglang or trtllm is exported, not compiled, and has no folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from specs.document import Document, DType, Frozen
from specs.errors import InputError, nearest_names
from specs.kernels import KernelBinary
from specs.plan import Cache, Layout, Limits, Scheduling
from specs.program import ProgramManifest

MANIFEST = "manifest.json"
PLAN = "plan.json"
RUNTIME = "runtime.json"
COMPLETE = "every file that was compiled; compile again"
Sha256 = str  # 64 lower-case hexadecimal digits
HEX64 = r"^[0-9a-f]{64}$"


class BundleFile(Frozen):
    """One file of the bundle, by its path inside it."""

    path: str
    sha256: Sha256 = Field(pattern=HEX64)
    bytes: NonNegativeInt


class ModelSource(Frozen):
    """Where the weights and the tokenizer come from.

    "directory": a checkpoint folder (config, safetensors, tokenizer), `directory` None until `serve` is told one.
    "made": a model made on the spot from `seed`, random weights and a byte-level tokenizer.
    """

    kind: Literal["directory", "made"] = "directory"
    directory: str | None = None
    seed: NonNegativeInt = 0


class Implementation(Frozen):
    """What runs an operator group in steps of at most `max_sequences` sequences and `max_tokens` tokens.

    `basis` is "measured" where a measurement overrode the plan's prediction; `predicted` then says what it replaced.
    """

    operators: str
    max_sequences: PositiveInt
    max_tokens: PositiveInt
    implementation: str
    reason: str = ""
    basis: Literal["predicted", "measured"] = "predicted"
    predicted: str | None = None


class RuntimeConfig(Document):
    """Everything one replica of one group needs at start. Paths are relative to the group's folder."""

    kind: Literal["RuntimeConfig"] = "RuntimeConfig"
    version: Literal[1] = 1
    group: str  # id of the plan's replica group
    model: str  # name under which it is served
    architecture: str  # name of the model in the catalogue, or of its folder
    role: Literal["unified", "prefill", "decode"] = "unified"
    device: str
    targets: tuple[str, ...]  # compiled for; `cpu` is the torch program
    layout: Layout
    weights_dtype: DType
    activation_dtype: DType
    limits: Limits
    cache: Cache
    scheduling: Scheduling
    replicas: PositiveInt = 1
    source: ModelSource = ModelSource()
    host: str = "127.0.0.1"
    port: PositiveInt = 8000
    config: str = "config.json"
    torch_program: str = "program_torch.json"  # `ProgramManifest`: CPU back end and oracle
    triton_program: str | None = None  # the same over kernels; None where only `cpu` is a target
    triton_programs: dict[str, str] = Field(default_factory=dict)  # by target, where one has a program of its own
    kernels: str | None = None  # kernels.json: records of the kernels and their binaries
    implementations: tuple[Implementation, ...] = ()  # of `triton_program`: of the first GPU target


class Bundle(Document):
    """The manifest: where the bundle comes from and a hash of everything in it."""

    kind: Literal["Bundle"] = "Bundle"
    version: Literal[1] = 1
    name: str
    capstan: str  # version that made it
    plan_sha256: Sha256 = Field(pattern=HEX64)
    toolchain: dict[str, str]  # triton -> version: registers and speed depend on it
    targets: tuple[str, ...]
    groups: tuple[str, ...]  # folders
    exported_groups: tuple[str, ...] = ()  # of other engines: not in the bundle
    files: tuple[BundleFile, ...]


def verify_bundle(path: str | Path) -> Bundle:
    """Read the manifest and compare the folder with it, file by file.

    `InputError` names the first file that differs from its hash, that the manifest does not list, or that a group
    needs and the manifest leaves out.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError("is no folder", file=str(root), expected="a bundle made by `capstan compile`")
    bundle = Bundle.read(root / MANIFEST)
    for record in bundle.files:
        inside = PurePosixPath(record.path)
        if inside.is_absolute() or ".." in inside.parts:
            raise InputError(f"names {record.path!r}, outside the bundle", file=str(root / MANIFEST), field="files")
        read_verified(root / inside, record.sha256)
    listed = {record.path for record in bundle.files}
    for found in _files_in(root):
        if found not in listed and found != MANIFEST:
            raise InputError(
                "is not in the manifest", file=str(root / found), expected="a bundle as compiled; remove it, or compile"
            )
    for needed in _needed_files(root, bundle):
        if needed not in listed:
            raise InputError(f"leaves out {needed}", file=str(root / MANIFEST), field="files", expected=COMPLETE)
    if next(record.sha256 for record in bundle.files if record.path == PLAN) != bundle.plan_sha256:
        raise InputError("is of another plan than plan.json", file=str(root / MANIFEST), field="plan_sha256")
    return bundle


def read_verified(file: Path, sha256: Sha256) -> bytes:
    """The content of a file of a bundle. `InputError` where it cannot be read or is not what was compiled."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=str(file), expected=COMPLETE) from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(
            "differs from its hash in the manifest", file=str(file), expected="an unchanged bundle; compile again"
        )
    return content


def _files_in(root: Path) -> Iterator[str]:
    """Everything that is no plain folder, by its path inside `root`. Links to folders are not followed."""
    for folder, folders, names in os.walk(root):
        linked = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in sorted(names + linked):
            yield (Path(folder) / name).relative_to(root).as_posix()


def _needed_files(root: Path, bundle: Bundle) -> Iterator[str]:
    """What a runtime opens of every group. A file is named before it is read: the caller stops at an unlisted one."""
    yield PLAN
    for group in bundle.groups:
        yield f"{group}/{RUNTIME}"
        config = RuntimeConfig.read(root / group / RUNTIME)
        yield f"{group}/{config.config}"
        programs = [config.torch_program, config.triton_program, *config.triton_programs.values()]
        for program in (name for name in programs if name is not None):
            yield f"{group}/{program}"
            yield f"{group}/{ProgramManifest.read(root / group / program).module}"
        if config.kernels is not None:
            yield f"{group}/{config.kernels}"
            for record in read_kernels(root / group / config.kernels):
                yield f"{group}/{record.source_file}"
                yield f"{group}/{record.binary_file}"


def read_kernels(path: Path) -> tuple[KernelBinary, ...]:
    """The records of a bundle's `kernels.json`. `InputError` names the file."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return tuple(KernelBinary.model_validate(row) for row in rows)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"is no list of kernels ({error})", file=str(path)) from None


def read_runtime_config(path: str | Path, group: str | None = None) -> tuple[Path, RuntimeConfig]:
    """(folder, config) of a replica group of a bundle; `group` may be left out where there is only one."""
    root = Path(path)
    bundle = Bundle.read(root / MANIFEST)
    if group is None:
        if len(bundle.groups) != 1:
            raise InputError(
                f"holds {len(bundle.groups)} groups",
                file=str(root),
                field="--group",
                expected=" or ".join(bundle.groups),
            )
        group = bundle.groups[0]
    if group not in bundle.groups:
        if group in bundle.exported_groups:
            raise InputError(
                f"group {group!r} runs on another engine: it is exported, not compiled; use `capstan export`",
                file=str(root),
                field="--group",
            )
        raise InputError(
            f"has no group {group!r}",
            file=str(root),
            field="--group",
            expected=" or ".join(bundle.groups),
            nearest=nearest_names(group, bundle.groups),
        )
    folder = root / group
    return folder, RuntimeConfig.read(folder / RUNTIME)
