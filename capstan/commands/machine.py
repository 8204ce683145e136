"""This machine as a planner's device: its memory, its cores, and the profile that `capstan calibrate` wrote."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.problem import Machine

CPU = "cpu"


def profile_path(device: str = CPU) -> Path:
    """Where `capstan calibrate` puts a profile and `capstan up` looks for it: the user's config directory (XDG)."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "capstan" / "profiles" / f"{device}.json"


def this_machine(profile: Path | None = None) -> Machine:
    """The catalogue's `cpu` with this machine's memory and cores, and the profile given, calibrated, or borrowed.

    `InputError` where the profile is no profile of `cpu`.
    """
    from planner.problem import Machine
    from specs.catalog import load_device, load_profile
    from specs.errors import InputError
    from specs.profile import DeviceProfile

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    device = load_device(CPU).model_copy(update={"memory_bytes": memory, "multiprocessors": os.cpu_count() or 1})
    path = profile if profile is not None else profile_path()
    if profile is None and not path.exists():
        return Machine(device, load_profile(CPU))
    read = DeviceProfile.read(path)
    if read.device != CPU:
        raise InputError(f"is a profile of {read.device!r}", file=str(path), field="device", expected=repr(CPU))
    return Machine(device, read)
