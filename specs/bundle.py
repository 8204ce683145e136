"""The `Bundle` documents: what a plan was compiled to. A manifest, and one `RuntimeConfig` per compiled replica group.

    bundle/manifest.json    `Bundle`: where it comes from, and the hash of every other file
    bundle/plan.json
    bundle/GROUP/           one folder per replica group whose engine is `capstan`: runtime.json and what it names

The runtime enforces the numbers of the plan, so a `RuntimeConfig` repeats them instead of pointing at the plan. A
group whose engine is vllm, sglang or trtllm is exported, not compiled, and has no folder.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from specs.document import Document, DType, Frozen
from specs.errors import InputError, nearest_names
from specs.plan import Cache, Layout, Limits, Scheduling

MANIFEST = "manifest.json"
RUNTIME = "runtime.json"
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
    kernels: str | None = None  # kernels.json: records of the kernels and their binaries
    implementations: tuple[Implementation, ...] = ()


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
    """Read the manifest and compare every file with its hash. `InputError` names the first file that differs."""
    root = Path(path)
    if not root.is_dir():
        raise InputError("is no folder", file=str(root), expected="a bundle made by `capstan compile`")
    bundle = Bundle.read(root / MANIFEST)
    for record in bundle.files:
        inside = PurePosixPath(record.path)
        if inside.is_absolute() or ".." in inside.parts:
            raise InputError(f"names {record.path!r}, outside the bundle", file=str(root / MANIFEST), field="files")
        file = root / inside
        try:
            content = file.read_bytes()
        except OSError as error:
            raise InputError(
                f"cannot be read ({error.strerror})",
                file=str(file),
                expected="every file of the manifest; compile again",
            ) from None
        if hashlib.sha256(content).hexdigest() != record.sha256:
            raise InputError(
                "differs from its hash in the manifest", file=str(file), expected="an unchanged bundle; compile again"
            )
    return bundle


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
