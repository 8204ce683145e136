"""`compile_plan`: a `Plan` in, a bundle on disk out. Nothing in it depends on the time or on the machine.

For each replica group whose engine is `capstan`: its numbers (runtime.json), the model's config, the torch program,
and, for GPU targets, the program over Triton kernels with the kernels' sources and binaries. Groups of other engines
are exported.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codegen.bundle_directory import file_records, refuse_foreign, write_directory
from codegen.compile import CompiledKernel, compile_kernels, resource_rows, triton_version
from codegen.implementations import predicted_implementations
from codegen.kernels import GeneratedKernel, render
from codegen.program import GeneratedProgram, generate_program, generate_triton_program
from codegen.program.kernel_specs import ProgramKernels
from specs.architecture import load_architecture
from specs.bundle import MANIFEST, RUNTIME, Bundle, Implementation, ModelSource, RuntimeConfig
from specs.catalog import device_names, load_device
from specs.engine_rules import rules_not_followed
from specs.errors import InputError, nearest_names
from specs.kernels import TARGETS, KernelBinary
from specs.plan import Plan, ReplicaGroup
from specs.profile import DeviceFacts

CPU = "cpu"
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_RESERVED = frozenset({MANIFEST, "plan.json", "resources.json", "resources.md"})


@dataclass(frozen=True)
class CompiledGroup:
    """One replica group: its runtime settings, and the records of its binaries (none for `cpu` alone)."""

    config: RuntimeConfig
    binaries: tuple[KernelBinary, ...]
    files: Mapping[str, bytes] = field(repr=False)  # by path inside the group's folder
    cached: int = 0  # binaries that were in the cache


@dataclass(frozen=True)
class BundleReport:
    """What was written where."""

    directory: Path
    manifest: Bundle
    groups: tuple[CompiledGroup, ...]

    @property
    def resources(self) -> list[dict[str, str | int | float]]:
        """The resource table: one row for each group, kernel and target."""
        return [{"group": one.config.group, **row} for one in self.groups for row in resource_rows(one.binaries)]


def compile_plan(
    plan: Plan,
    output: str | Path,
    targets: Sequence[str] | None = None,
    *,
    groups: Sequence[str] | None = None,
    model_sources: Mapping[str, ModelSource] | None = None,
    plan_file: str | Path | None = None,
    capstan_version: str | None = None,
    cache: Path | None = None,
    processes: int = 2,
    progress: Callable[[str, CompiledKernel], None] | None = None,
) -> BundleReport:
    """Compile the groups of `plan` that run on engine capstan, and write the bundle to `output`.

    `targets`: compiler targets and `cpu`; None = the target of each group's device. `groups`: ids; None = all of the
    engine. `model_sources`: model name -> where its weights come from. `plan_file` is named in errors;
    `capstan_version` goes into the manifest (None: that of the plan). `cache`: folder of compiled kernels (None: the
    user's). `progress` is called with the group and each kernel as it is ready.

    Raises `InputError` for what cannot be compiled, with the group and the reason; `ToolchainError` where Triton is
    missing or refuses a kernel.
    """
    refuse_foreign(Path(output))
    try:
        chosen = _chosen_groups(plan, groups)
        wanted = None if targets is None else _checked_targets(targets)
        sources = model_sources or {}
        for model in sources:
            if model not in plan.architectures:
                raise InputError(f"the plan has no model {model!r}", nearest=nearest_names(model, plan.architectures))
        compiled = tuple(
            _compile_group(
                plan, group, wanted or _device_targets(plan, group), sources, index, cache, processes, progress
            )
            for index, group in enumerate(chosen)
        )
    except InputError as error:
        if error.file is None and plan_file is not None:
            error.file = str(plan_file)
        raise
    files = _bundle_files(plan, compiled)
    manifest = _manifest(plan, compiled, files, capstan_version or plan.capstan)
    write_directory(files | {MANIFEST: manifest.to_json().encode()}, Path(output))
    return BundleReport(Path(output), manifest, compiled)


def _chosen_groups(plan: Plan, wanted: Sequence[str] | None) -> list[ReplicaGroup]:
    by_id = {group.id: group for group in plan.groups}
    for name in wanted or ():
        if name not in by_id:
            raise InputError(
                f"the plan has no group {name!r}",
                field="--group",
                expected=" or ".join(by_id),
                nearest=nearest_names(name, by_id),
            )
    asked = [by_id[name] for name in dict.fromkeys(wanted)] if wanted else list(plan.groups)
    chosen = [group for group in asked if group.engine == "capstan"]
    others = [group for group in asked if group.engine != "capstan"]
    if others and (wanted or not chosen):
        first = others[0]
        raise InputError(
            f"group {first.id} runs on {first.engine}: it is exported, not compiled; "
            f"use `capstan export PLAN --to {first.engine}`",
            field=f"groups.{first.id}.engine",
            expected="a group whose engine is capstan",
        )
    for group in chosen:
        if group.role != "unified":
            raise InputError(
                f"disaggregated groups ({group.role}) are not compiled in this version",
                field=f"groups.{group.id}.role",
                expected="'unified'",
            )
        if not _FOLDER.fullmatch(group.id) or group.id in _RESERVED:
            raise InputError(
                f"group id {group.id!r} cannot name a folder", field="groups", expected="letters, digits, '.', '_', '-'"
            )
        for rule, reason, expected in rules_not_followed(group.engine, group.scheduling, group.cache):
            raise InputError(reason, field=f"groups.{group.id}.{rule}", expected=expected)
    return chosen


def _checked_targets(targets: Iterable[str]) -> tuple[str, ...]:
    known = (*TARGETS, CPU)
    found = tuple(dict.fromkeys(targets))
    for target in found:
        if target not in known:
            raise InputError(
                f"there is no target {target!r}",
                field="--target",
                expected="one or more of " + ", ".join(known),
                nearest=nearest_names(target, known),
            )
    if not found:
        raise InputError("no target is named", field="--target", expected="one or more of " + ", ".join(known))
    return found


def _device_targets(plan: Plan, group: ReplicaGroup) -> tuple[str, ...]:
    facts = plan.devices.get(group.device)
    if facts is None:
        raise InputError(f"the plan has no facts of device {group.device!r}", field=f"groups.{group.id}.device")
    return _checked_targets([facts.target])


def _compile_group(
    plan: Plan,
    group: ReplicaGroup,
    targets: tuple[str, ...],
    sources: Mapping[str, ModelSource],
    index: int,
    cache: Path | None,
    processes: int,
    progress: Callable[[str, CompiledKernel], None] | None,
) -> CompiledGroup:
    where = f"group {group.id}"
    architecture_config = plan.architectures.get(group.model)
    if architecture_config is None:
        raise InputError(f"the plan has no config of model {group.model!r}", field=where)
    name = _architecture_name(plan, group.model)
    torch_program = generate_program(
        load_architecture(architecture_config, name=name),
        group.layout,
        compute_dtype=group.weights_dtype,
        kv_dtype=group.cache.kv_dtype,
        block_size_tokens=group.cache.block_size_tokens,
        where=where,
    )
    files = {"config.json": _json(architecture_config), **_program_files(torch_program)}
    gpu_targets = [target for target in targets if target != CPU]
    binaries: tuple[KernelBinary, ...] = ()
    implementations: tuple[Implementation, ...] = ()
    own_programs: dict[str, str] = {}
    cached = 0
    if gpu_targets:
        by_target = {target: _triton_program(plan, group, torch_program, target, where) for target in gpu_targets}
        program = by_target[gpu_targets[0]]
        if program.kernels is None:
            raise ValueError("a program over kernels names its kernels")
        generated = _generated_kernels(program.kernels, gpu_targets)
        compiled = compile_kernels(
            generated,
            cache=cache,
            processes=processes,
            progress=None if progress is None else lambda kernel: progress(group.id, kernel),
        )
        binaries, kernel_files = _kernel_files(generated, compiled)
        files |= _program_files(program) | kernel_files
        for target, other in by_target.items():
            if other.source != program.source:
                own_programs[target] = f"program_triton_{target}.json"
                files |= _program_files(other, f"_{target}")
        implementations = predicted_implementations(group, program.kernels)
        cached = sum(one.cached for one in compiled)
    config = RuntimeConfig(
        group=group.id,
        model=group.model,
        architecture=name,
        role=group.role,
        device=group.device,
        targets=targets,
        layout=group.layout,
        weights_dtype=group.weights_dtype,
        activation_dtype=group.weights_dtype,
        limits=group.limits,
        cache=group.cache,
        scheduling=group.scheduling,
        replicas=group.replicas,
        source=sources.get(group.model, ModelSource()),
        port=8000 + index,
        triton_program="program_triton.json" if gpu_targets else None,
        triton_programs=own_programs,
        kernels="kernels/kernels.json" if gpu_targets else None,
        implementations=implementations,
    )
    files[RUNTIME] = config.to_json().encode()
    return CompiledGroup(config, binaries, files, cached)


def _architecture_name(plan: Plan, model: str) -> str:
    """The model's name as the spec has it; of a folder only its last part, which does not depend on the machine."""
    declared: Any = plan.spec.get("models", {}).get(model, {})
    named = declared.get("architecture") if isinstance(declared, dict) else None
    if not isinstance(named, str):
        return model
    return Path(named).name if Path(named).is_absolute() or named.startswith(".") else named


def _triton_program(
    plan: Plan, group: ReplicaGroup, torch_program: GeneratedProgram, target: str, where: str
) -> GeneratedProgram:
    """The program for one target: how large a decode step must be to fill a device is a matter of the device."""
    return generate_triton_program(
        torch_program.model,
        target=target,
        multiprocessors=_multiprocessors(plan.devices.get(group.device), target),
        max_num_batched_tokens=group.limits.max_num_batched_tokens,
        where=where,
    )


def _multiprocessors(planned: DeviceFacts | None, target: str) -> int:
    """Of the plan's device where it has this target, else of the catalogue's largest that has it."""
    if planned is not None and planned.target == target:
        return planned.multiprocessors
    known = [device.multiprocessors for device in map(load_device, device_names()) if device.target == target]
    if not known:
        raise InputError(f"no device of the catalogue has target {target}", field="--target")
    return max(known)


def _program_files(program: GeneratedProgram, suffix: str = "") -> dict[str, bytes]:
    name = f"program_{program.manifest.backend}{suffix}"
    manifest = program.manifest.model_copy(update={"module": f"{name}.py"})
    return {manifest.module: program.source.encode(), f"{name}.json": manifest.to_json().encode()}


def _generated_kernels(kernels: ProgramKernels, targets: Sequence[str]) -> list[GeneratedKernel]:
    specs = (*kernels.specs, kernels.sample)
    return [render(spec.model_copy(update={"target": target})) for target in targets for spec in specs]


def _kernel_files(
    generated: Sequence[GeneratedKernel], compiled: Sequence[CompiledKernel]
) -> tuple[tuple[KernelBinary, ...], dict[str, bytes]]:
    """Records with the places of their files; sources (the same for all targets), binaries and kernels.json."""
    records, files = [], {}
    for kernel, one in zip(generated, compiled, strict=True):
        source = f"kernels/{kernel.name}.py"
        binary = f"binaries/{one.record.target}/{kernel.name}{one.suffix}"
        files[source], files[binary] = kernel.source.encode(), one.data
        records.append(one.record.model_copy(update={"source_file": source, "binary_file": binary}))
    files["kernels/kernels.json"] = _json([record.model_dump(mode="json") for record in records])
    return tuple(records), files


def _bundle_files(plan: Plan, compiled: Sequence[CompiledGroup]) -> dict[str, bytes]:
    rows = [{"group": one.config.group, **row} for one in compiled for row in resource_rows(one.binaries)]
    files = {
        "plan.json": plan.to_json().encode(),
        "resources.json": _json(rows),
        "resources.md": _resources_markdown(rows).encode(),
    }
    for one in compiled:
        files |= {f"{one.config.group}/{name}": content for name, content in one.files.items()}
    return files


def _resources_markdown(rows: Sequence[Mapping[str, str | int | float]]) -> str:
    lines = [
        "# Resources of the compiled kernels",
        "",
        "Registers and spilled bytes are per thread, shared memory per block; occupancy is the share of a",
        "multiprocessor's warps that can be resident, and the next column is what limits it.",
        "",
    ]
    if not rows:
        return "\n".join([*lines, "No kernels: the bundle runs the torch program.", ""])
    titles = list(rows[0])
    lines += ["| " + " | ".join(title.replace("_", " ") for title in titles) + " |", "|---" * len(titles) + "|"]
    lines += ["| " + " | ".join(str(row[title]) for title in titles) + " |" for row in rows]
    return "\n".join([*lines, ""])


def _manifest(plan: Plan, compiled: Sequence[CompiledGroup], files: Mapping[str, bytes], version: str) -> Bundle:
    kernels = any(one.binaries for one in compiled)
    return Bundle(
        name=plan.name,
        capstan=version,
        plan_sha256=hashlib.sha256(files["plan.json"]).hexdigest(),
        toolchain={"triton": triton_version()} if kernels else {},
        targets=tuple(dict.fromkeys(target for one in compiled for target in one.config.targets)),
        groups=tuple(one.config.group for one in compiled),
        exported_groups=tuple(group.id for group in plan.groups if group.engine != "capstan"),
        files=file_records(files),
    )


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
