"""Folders: those of the user by the XDG standard, and replacing one whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from specs.errors import InputError


def cache_home() -> Path:
    """Folder of what can be made again: `$XDG_CACHE_HOME/capstan`, or `~/.cache/capstan`."""
    return _home("XDG_CACHE_HOME", ".cache")


def config_home() -> Path:
    """Folder of what the user keeps: `$XDG_CONFIG_HOME/capstan`, or `~/.config/capstan`."""
    return _home("XDG_CONFIG_HOME", ".config")


def _home(variable: str, otherwise: str) -> Path:
    """The standard has relative values ignored. `InputError` where there is no home folder either."""
    stated = os.environ.get(variable, "")
    if os.path.isabs(stated):
        return Path(stated) / "capstan"
    try:
        return Path.home() / otherwise / "capstan"
    except RuntimeError:
        raise InputError("this user has no home folder", field=variable, expected="an absolute path") from None


def replace_directory(staged: Path, output: Path) -> None:
    """Rename `staged` to `output`. A folder that stood there is deleted afterwards, or put back where that fails.

    Both are on one file system. `InputError` names where the old folder is if even putting it back fails.
    """
    if not output.is_dir():
        os.replace(staged, output)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    old = aside / "old"
    try:
        os.replace(output, old)
        try:
            os.replace(staged, output)
        except OSError:
            if not output.exists():
                os.replace(old, output)
            raise
    except OSError as error:
        if old.exists() and not output.exists():
            reason = error.strerror or error
            raise InputError(f"cannot be replaced ({reason}); the old one is {old}", file=str(output)) from None
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(aside, ignore_errors=True)
