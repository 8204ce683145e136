"""Rendering templates, and writing an export as a directory: all of it or nothing, never over somebody's own files."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from specs.errors import InputError

MARKER = ".capstan-export.json"


@dataclass(frozen=True)
class Export:
    """Files of one export, by path relative to its directory. Scripts (`*.sh`) become executable."""

    to: str
    files: Mapping[str, str]
    notes: tuple[str, ...] = ()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates"), encoding="utf-8"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        comment_start_string="<#",  # `{#` is shell: ${#array[@]}
        comment_end_string="#>",
        autoescape=False,  # the output is shell, nginx and Markdown; `sh` and safe names do the quoting
    )
    environment.filters["line"] = lambda value: " ".join(str(value).split())
    environment.filters["sh"] = lambda value: shlex.quote(str(value))
    return environment


def render(template: str, **values: Any) -> str:
    """The template filled in; an undefined name is an error."""
    return _environment().get_template(template).render(**values)


def write_export(export: Export, output: Path, *, force: bool = False) -> None:
    """Write `export` to the directory `output`: the old one or the new one, never half of either.

    A directory that is not empty is replaced only where an earlier export wrote everything in it and nobody edited
    that since. With `force`, files in the way are overwritten one by one and all others are left alone.
    `InputError` where the directory is somebody else's or cannot be written.
    """
    output = output.resolve()
    try:
        if not force:
            _refuse_foreign(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
            staged = Path(scratch) / "new"
            _stage(export, staged)
            if force and output.is_dir():
                _overwrite(staged, output)
            else:
                if output.is_dir():
                    os.replace(output, Path(scratch) / "old")
                os.replace(staged, output)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror or error})", file=str(output)) from None


def _stage(export: Export, directory: Path) -> None:
    directory.mkdir()
    digests = {}
    for name, text in sorted(export.files.items()):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
        if path.suffix == ".sh":
            path.chmod(path.stat().st_mode | 0o111)
        digests[name] = hashlib.sha256(text.encode()).hexdigest()
    marker = {"kind": "Export", "to": export.to, "files": digests}
    (directory / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def _overwrite(staged: Path, output: Path) -> None:
    for path in sorted(path for path in staged.rglob("*") if path.is_file()):
        target = output / path.relative_to(staged)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)


def _refuse_foreign(output: Path) -> None:
    """`InputError` where `output` holds anything but what an export wrote."""
    if not output.exists():
        return
    if not output.is_dir():
        raise InputError("exists and is not a directory", file=str(output), expected="a directory to write to")
    present = {str(path.relative_to(output)) for path in output.rglob("*") if not path.is_dir()}
    if not present:
        return
    written = _marker_digests(output)
    advice = "a new or empty directory, or --force to overwrite the files in the way"
    if written is None:
        raise InputError("is not empty and was not written by `capstan export`", file=str(output), expected=advice)
    foreign = sorted(present - set(written) - {MARKER})
    if foreign:
        raise InputError(f"also holds other files ({foreign[0]})", file=str(output), expected=advice)
    for name in sorted(present & set(written)):
        if hashlib.sha256((output / name).read_bytes()).hexdigest() != written[name]:
            raise InputError(f"holds a file that was edited since ({name})", file=str(output), expected=advice)


def _marker_digests(output: Path) -> Mapping[str, str] | None:
    """What an earlier export says it wrote; None where there is no such statement."""
    try:
        marker = json.loads((output / MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    files = marker.get("files") if isinstance(marker, dict) and marker.get("kind") == "Export" else None
    return files if isinstance(files, dict) else None
