"""Writing a bundle: the old directory or the new one, never half of either, and never over somebody's own files."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from specs.bundle import MANIFEST, BundleFile
from specs.directories import replace_directory
from specs.errors import InputError

UNLISTED = "__pycache__"  # Python leaves these where it loads a program from


def file_records(files: Mapping[str, bytes]) -> tuple[BundleFile, ...]:
    """Path, hash and size of every file, by path."""
    return tuple(
        BundleFile(path=path, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
        for path, content in sorted(files.items())
    )


def write_directory(files: Mapping[str, bytes], output: Path) -> None:
    """Write `files` to a folder beside `output`, then rename it over `output`, which is left alone where it holds
    these very files already (somebody may be reading them).

    `InputError` where `output` exists and is neither empty nor a bundle, or cannot be written.
    """
    output = Path(os.path.abspath(output))
    try:
        refuse_foreign(output)
        if _holds(output, files):
            return
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
            staged = Path(scratch) / "new"
            for name, content in sorted(files.items()):
                path = staged / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            try:
                os.replace(staged, output)  # nothing there, or an empty folder
            except OSError:
                if not _holds(output, files):  # else another process was quicker
                    replace_directory(staged, output)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror or error})", file=str(output)) from None


def _holds(output: Path, files: Mapping[str, bytes]) -> bool:
    """Whether `output` is a folder of exactly these files."""
    if not output.is_dir():
        return False
    found = {path.relative_to(output).as_posix(): path for path in output.rglob("*") if not path.is_dir()}
    return found.keys() == files.keys() and all(path.read_bytes() == files[name] for name, path in found.items())


def refuse_foreign(output: Path) -> None:
    """`InputError` where `output` holds anything but an earlier bundle. Somebody's folder is not searched."""
    try:
        _refuse_foreign(output)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", file=str(output)) from None


def _refuse_foreign(output: Path) -> None:
    if not output.exists() and not output.is_symlink():
        return
    advice = "a new folder, an empty one, or an earlier bundle"
    if not output.is_dir():
        raise InputError("exists and is not a folder", file=str(output), expected=advice)
    if not any(output.iterdir()):
        return
    listed = _listed(output / MANIFEST)
    if listed is None:
        raise InputError("is not empty and is not a bundle; refuse to replace it", file=str(output), expected=advice)
    present = {
        path.relative_to(output).as_posix()
        for path in output.rglob("*")
        if not path.is_dir() and UNLISTED not in path.relative_to(output).parts
    }
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
