"""This machine as a planner's device: its memory, its cores, and the profile that `capstan calibrate` wrote."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.facts import Machine
    from specs.deployment import DeploymentSpec

CPU = "cpu"


def profile_path(device: str = CPU) -> Path:
    """Where `capstan calibrate` puts a profile and `capstan up` looks for it: the user's config directory (XDG)."""
    from specs.directories import config_home

    return config_home() / "profiles" / f"{device}.json"


def this_machine(profile: Path | None = None) -> Machine:
    """The catalogue's `cpu` with this machine's memory and cores, and the profile given, calibrated, or borrowed.

    `InputError` where the profile is no profile of `cpu`.
    """
    from planner.facts import Machine
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


def machine_of_profile(path: Path, spec: DeploymentSpec) -> Machine:
    """The catalogue's device of a profile that `capstan calibrate` wrote, with that profile.

    `InputError` where it is no profile, or of a device that no pool of `spec` holds.
    """
    from planner.cost.calibration import read_profile
    from planner.facts import Machine
    from specs.catalog import load_device
    from specs.errors import InputError

    profile = read_profile(path)
    device = load_device(profile.device)
    held = {load_device(pool.device).name for pool in spec.hardware.pools}
    if device.name not in held:
        raise InputError(
            f"is a profile of {device.name}, which no pool holds",
            file=str(path),
            field="device",
            expected=f"one of {', '.join(sorted(held))}",
        )
    return Machine(device, profile)


def with_engine(machine: Machine | None, path: Path, spec: DeploymentSpec) -> Machine:
    """`machine` with the profile of an engine that `capstan calibrate --url` wrote.

    `InputError` where it is none, or of an engine that `spec` does not plan for.
    """
    from dataclasses import replace

    from planner.facts import Machine
    from specs.catalog import load_device, load_profile
    from specs.errors import InputError
    from specs.profile import EngineProfile

    engine = EngineProfile.read(path)
    if engine.name not in spec.engines:
        raise InputError(
            f"is a profile of {engine.name!r}, which the spec does not plan for",
            file=str(path),
            field="name",
            expected=" or ".join(spec.engines),
        )
    if machine is None:  # the first pool's device stays as the catalogue has it
        name = spec.hardware.pools[0].device
        machine = Machine(load_device(name), load_profile(name))
    return replace(machine, engines=(engine,))
