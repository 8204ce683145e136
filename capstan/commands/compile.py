"""`capstan compile PLAN -o BUNDLE`: generated programs, kernels, binaries and what they take, with no GPU at hand."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from capstan.console import out, print_json

if TYPE_CHECKING:
    from codegen.bundle import BundleReport
    from codegen.compile import CompiledKernel
    from specs.bundle import RuntimeConfig


def run_compile(
    plan: Path,
    output: Path,
    targets: list[str] | None = None,
    group: list[str] | str | None = None,
    json_output: bool = False,
) -> None:
    """Compile the plan's groups of engine capstan (`group`: only these) for `targets`, or for the plan's devices.

    Each of `targets` may hold several, with commas. Progress goes to stderr. Raises `InputError`.
    """
    import capstan
    from codegen.bundle import compile_plan
    from specs.plan import Plan

    def progress(group_id: str, kernel: CompiledKernel) -> None:
        if not kernel.cached:
            print(f"compiled {kernel.record.name} for {kernel.record.target} ({group_id})", file=sys.stderr)

    asked = None if targets is None else [part.strip() for one in targets for part in one.split(",") if part.strip()]
    report = compile_plan(
        Plan.read(plan),
        output,
        asked,
        groups=[group] if isinstance(group, str) else group,
        plan_file=plan,
        capstan_version=capstan.__version__,
        progress=progress,
    )
    for exported in report.manifest.exported_groups:
        print(f"note: group {exported} runs on another engine; use `capstan export`", file=sys.stderr)
    if json_output:
        print_json(_document(report))
    else:
        _print(report)


def _document(report: BundleReport) -> dict[str, object]:
    return {
        "kind": "Compilation",
        "directory": str(report.directory),
        "targets": list(report.manifest.targets),
        "toolchain": report.manifest.toolchain,
        "groups": [
            {
                "group": one.config.group,
                "targets": list(one.config.targets),
                "devices": one.config.layout.gpus,  # of a replica; `capstan serve` runs one
                "binaries": len(one.binaries),
                "implementations": [choice.model_dump(mode="json") for choice in one.config.implementations],
            }
            for one in report.groups
        ],
        "exported_groups": list(report.manifest.exported_groups),
        "resources": report.resources,
        "files": [record.path for record in report.manifest.files],
    }


def _print(report: BundleReport) -> None:
    from rich.table import Table

    console = out()
    if report.resources:
        table = Table(title="Resources", caption="registers and spills per thread, shared memory per block")
        columns = ("kernel", "target", "registers", "spilled_bytes", "shared_memory_bytes", "warps", "occupancy")
        for name in columns:
            table.add_column(name.replace("_", " "), justify="left" if name in ("kernel", "target") else "right")
        for row in report.resources:
            table.add_row(*(f"{row[name]:.0%}" if name == "occupancy" else str(row[name]) for name in columns))
        console.print(table)
    for one in report.groups:
        what = f"{len(one.binaries)} kernels, {one.cached} from the cache" if one.binaries else "the torch program"
        console.print(f"{one.config.group}: {what}; targets {', '.join(one.config.targets)}")
    console.print(f"Wrote {len(report.manifest.files) + 1} files to {report.directory}.")
    for one in report.groups:
        console.print(f"{one.config.group}: {how_to_serve(report.directory, one.config)}", markup=False, soft_wrap=True)


def how_to_serve(bundle: Path, config: RuntimeConfig) -> str:
    """What is true of this group: the command that serves it, or why none does."""
    if config.layout.gpus > 1:
        return f"compiled, not served yet: a replica takes {config.layout.gpus} devices, `capstan serve` runs one"
    model = " --model DIR" if config.source.kind == "directory" and config.source.directory is None else ""
    return f"serve with: capstan serve {shlex.quote(str(bundle))} --group {config.group}{model}"
