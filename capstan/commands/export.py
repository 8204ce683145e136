"""`capstan export PLAN --to TARGET -o DIR`: files for other engines and clusters."""

from __future__ import annotations

import sys
from pathlib import Path

from capstan.console import print_json


def run_export(plan: Path, to: str, output: Path, force: bool, json_output: bool) -> None:
    """Read the plan, make the files, write the directory; notes go to stderr. Raises `InputError`."""
    from codegen.exports import export_plan, write_export
    from specs.plan import Plan

    export = export_plan(Plan.read(plan), to, file=plan)  # codegen checks the plan by rules of its own
    write_export(export, output, force=force)
    for note in export.notes:
        print(f"note: {note}", file=sys.stderr)
    if json_output:
        document = {
            "kind": "Export",
            "to": export.to,
            "directory": str(output),
            "files": sorted(export.files),
            "notes": list(export.notes),
        }
        print_json(document)
        return
    print(f"Wrote {len(export.files)} files for {to} to {output}:")
    for name in sorted(export.files):
        print(f"  {name}")
    print(f"Start with {output / 'README.md'}.")
