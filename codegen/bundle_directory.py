"""Writing a bundle: the old directory or the new one, never half of either, and never over somebody's own files."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from specs.bundle import MANIFEST, BundleFile
from specs.errors import InputError

UNLISTED = "__pycache__"  # Python leaves these where it loads a program from


def file_records(files: Mapping[str, bytes]) -> tuple[BundleFile, ...]:
    """Path, hash and size of every file, by path."""
    return tuple(
        BundleFile(path=path, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
        for path, content in sorted(files.items())
    )


def write_directory(files: Mapping[str, bytes], output: Path) -> None:
    """Write `files` to a folder beside `output`, then rename it over `output`.

    `InputError` where `output` exists and is neither empty nor a bundle, or cannot be written.
    """
    output = Path(os.path.abspath(output))
    try:
        refuse_foreign(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
            staged = Path(scratch) / "new"
            for name, content in sorted(files.items()):
                path = staged / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            if output.is_dir():
                os.replace(output, Path(scratch) / "old")
            os.replace(staged, output)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror or error})", file=str(output)) from None


def refuse_foreign(output: Path) -> None:
    """`InputError` where `output` holds anything but an earlier bundle."""
    if not output.exists() and not output.is_symlink():
        return
    advice = "a new folder, an empty one, or an earlier bundle"
    if not output.is_dir():
        raise InputError("exists and is not a folder", file=str(output), expected=advice)
    present = {
        path.relative_to(output).as_posix()
        for path in output.rglob("*")
        if not path.is_dir() and UNLISTED not in path.relative_to(output).parts
    }
    if not present:
        return
    listed = _listed(output / MANIFEST)
    if listed is None:
        raise InputError("is not empty and is no bundle", file=str(output), expected=advice)
    foreign = sorted(present - listed - {MANIFEST})
    if foreign:
        raise InputError(f"also holds other files ({foreign[0]})", file=str(output), expected=advice)


def _listed(manifest: Path) -> set[str] | None:
    """The files that an earlier bundle says it has, of whatever version; None where this is no bundle."""
    try:
        document = json.loads(manifest.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(document, dict) or document.get("kind") != "Bundle":
        return None
    files = document.get("files")
    if not isinstance(files, list):
        return None
    return {record["path"] for record in files if isinstance(record, dict) and isinstance(record.get("path"), str)}
