"""What is known of everything that a spec names: architectures, devices as their pool has them, profiles, engines."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from planner.candidates.experts import MeasuredExperts, mixtures
from planner.cost.energy import limit_w
from planner.cost.margin import Margin, margin_of
from planner.network.reach import port_in_pool
from specs.architecture import Architecture, load_architecture
from specs.catalog import load_device, load_engine, load_power, load_profile
from specs.deployment import DeploymentSpec, HardwareSpec, PoolSpec, SpeculativeSpec
from specs.errors import InputError
from specs.expert_loads import read_expert_loads
from specs.profile import DeviceFacts, DeviceProfile, EngineProfile


@dataclass(frozen=True)
class Machine:
    """What was calibrated, in the place of the catalogue's: a device with its true memory and its profile, engines."""

    device: DeviceFacts
    profile: DeviceProfile
    engines: tuple[EngineProfile, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What the catalogue (or the machine) says about everything a spec names, loaded once."""

    architectures: dict[str, Architecture]  # by model
    devices: dict[str, DeviceFacts]  # by the pools' device names, as the datasheet says
    profiles: dict[str, DeviceProfile]  # by the pools' device names
    engines: dict[str, EngineProfile]
    hardware: HardwareSpec
    expert_loads: dict[str, MeasuredExperts]  # by model, where the spec names a file of them
    margins: dict[str, Margin]  # by engine: what is planned with, in multiples of what is predicted
    drafts: dict[str, Architecture] = field(default_factory=dict)  # by model: what drafts for it, where a model does

    def device_of(self, pool: PoolSpec) -> DeviceFacts:
        """The device as it stands in `pool`."""
        return in_pool(self.devices[pool.device], pool, self.hardware)


def in_pool(device: DeviceFacts, pool: PoolSpec, hardware: HardwareSpec) -> DeviceFacts:
    """The device in the nodes of `pool`, behind the declared network between them; as the datasheet says elsewhere."""
    rate, latency = port_in_pool(hardware, pool)
    declared = {
        "nic_bytes_per_s": rate,
        "network_latency_s": latency,
        "pcie_bytes_per_s": hardware.host.pcie_bytes_per_s,
    }
    stated = {name: value for name, value in declared.items() if value is not None}
    return device.model_copy(update={"gpus_per_node": pool.gpus_per_node, **stated})


def load_facts(spec: DeploymentSpec, base_dir: str | Path, machine: Machine | None = None) -> Facts:
    """Architectures, devices, profiles and engines that the spec names; errors name the statement."""
    architectures: dict[str, Architecture] = {}
    measured: dict[str, MeasuredExperts] = {}
    for name, model in spec.models.items():
        with _at(f"models.{name}.architecture"):
            architectures[name] = load_architecture(model.architecture, base_dir=Path(base_dir))
        if model.expert_load is not None:
            with _at(f"models.{name}.expert_load"):
                measured[name] = _measured_experts(architectures[name], Path(base_dir) / model.expert_load)
    drafts = {}
    for name, model in spec.models.items():
        if model.speculative is not None and model.speculative.method == "draft":
            with _at(f"models.{name}.speculative.draft_model"):
                drafts[name] = _draft_model(model.speculative, Path(base_dir))
    devices, profiles = {}, {}
    for index, pool in enumerate(spec.hardware.pools):
        with _at(f"hardware.pools[{index}].device"):
            device, profile = load_device(pool.device), load_profile(pool.device)
            if machine is not None and machine.device.name == device.name:
                device, profile = machine.device, machine.profile
            devices[pool.device], profiles[pool.device] = device, profile
        with _at(f"hardware.pools[{index}]"):
            if pool.power_cap_w is not None:
                limit_w(device, load_power(device.name), pool.power_cap_w)  # says where it stops all work
    engines: dict[str, EngineProfile] = {name: load_engine(name) for name in spec.engines}
    if machine is not None:
        engines |= {engine.name: engine for engine in machine.engines if engine.name in engines}
    margins = {name: margin_of(engine, spec.limits.confidence) for name, engine in engines.items()}
    return Facts(architectures, devices, profiles, engines, spec.hardware, measured, margins, drafts)


def _measured_experts(architecture: Architecture, path: Path) -> MeasuredExperts:
    """The loads of a file. Raises `InputError` where the model has no experts, or the file is not of its shape."""
    found = mixtures(architecture)
    if not found:
        raise InputError(
            f"{architecture.name} has no routed experts", expected="a mixture of experts, or no expert_load"
        )
    return MeasuredExperts(np.array(read_expert_loads(path, len(found), found[0].experts)))


def _draft_model(speculative: SpeculativeSpec, base_dir: Path) -> Architecture:
    if speculative.draft_model is None:
        raise InputError("is missing", expected="the model that drafts, a catalogue name or a path")
    return load_architecture(speculative.draft_model, base_dir=base_dir)


class _at:  # noqa: N801 - reads as a phrase: `with _at("models.chat")`
    """Puts the statement's path in front of errors that the catalogue raises."""

    def __init__(self, field: str) -> None:
        self.field = field

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InputError):
            error.message = error.message if error.field is None else f"{error.field}: {error.message}"
            error.field = self.field
