"""A plan as files for engines that people already run. `export_plan` makes them, `write_export` writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from codegen.exports.checks import EXPORTED, check_plan
from codegen.exports.directory import Export, write_export
from codegen.exports.kubernetes import kubernetes_export
from codegen.exports.scripts import SCRIPTS
from specs.errors import InputError, nearest_names
from specs.plan import Plan

__all__ = ["TARGETS", "Export", "export_plan", "write_export"]

TARGETS: dict[str, Callable[[Plan], Export]] = {**SCRIPTS, "kubernetes": kubernetes_export}
LATER = ("trtllm", "ray")


def export_plan(plan: Plan, to: str, *, file: str | Path | None = None) -> Export:
    """Files of `plan` for the target `to` (one of `TARGETS`). Nothing is written; same plan, same bytes.

    `InputError` where the target does not exist, the plan breaks a rule (see `codegen.exports.checks`) or cannot be
    kept by the target. `file` is the plan's path, for messages.
    """
    if to not in TARGETS:
        raise InputError(
            f"no export to {to!r} in this version" if to in LATER else f"unknown target {to!r}",
            field="--to",
            expected=" or ".join(TARGETS),
            nearest=() if to in LATER else nearest_names(to, TARGETS),
        )
    place = str(file) if file is not None else None
    notes = check_plan(plan, place, (to,) if to in SCRIPTS else EXPORTED)
    try:
        export = TARGETS[to](plan)
    except InputError as error:
        error.file = error.file or place
        raise
    return Export(export.to, export.files, (*notes, *export.notes))
