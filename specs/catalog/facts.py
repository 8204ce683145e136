"""Look-up of catalogue entries by name. A name is a file name: one look-up parses one small file.

Names are forgiving (`H100-SXM5-80GB`, `h100_sxm`, `nvidia h100`): case, `_`, blanks and the maker's name do not
matter. Aliases stand in the device files; they are read only when the file name does not answer.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError

from specs.document import Document
from specs.errors import InputError, nearest_names
from specs.profile import DeviceFacts, DeviceProfile, EngineProfile, PowerProfile

CATALOG = Path(__file__).parent
# libyaml parses about ten times faster than the pure Python loader; both build plain types only
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MAKERS = ("nvidia-", "amd-", "instinct-", "geforce-")
_T = TypeVar("_T", bound=Document)


class NodeFacts(Document):
    """One node type: how many devices it holds and what joins them to each other and to the next node."""

    kind: Literal["Node"] = "Node"
    name: str
    device: str  # catalogue name
    gpus: PositiveInt
    fast_domain: PositiveInt  # devices joined by the fast link; larger than `gpus` in a rack such as NVL72
    network_ports: NonNegativeInt  # between nodes, of the compute network
    network_bytes_per_s: NonNegativeFloat  # per port, one direction
    host_memory_bytes: PositiveInt
    nvme_bytes: NonNegativeInt = 0  # local storage for data, of the node; 0 = none known
    nvme_bytes_per_s: NonNegativeFloat = 0.0  # sequential reads, of all drives together
    sources: dict[str, str]


def device_names() -> tuple[str, ...]:
    """Canonical device names, sorted."""
    return _names("devices")


def engine_names() -> tuple[str, ...]:
    """Names of the engines with a profile, sorted."""
    return _names("engines")


def node_names() -> tuple[str, ...]:
    """Canonical node names, sorted."""
    return _names("nodes")


@cache
def load_device(name: str) -> DeviceFacts:
    """Facts of a device by name or alias. `InputError` names the nearest devices when there is none."""
    return _parse(_device_path(name), DeviceFacts)


@cache
def load_engine(name: str) -> EngineProfile:
    """How an engine schedules and what it costs. `InputError` names the nearest engines when there is none."""
    return _parse(_path("engines", name, "engine"), EngineProfile)


@cache
def load_node(name: str) -> NodeFacts:
    """Facts of a node type. `InputError` names the nearest ones when there is none."""
    return _parse(_path("nodes", name, "node type"), NodeFacts)


@cache
def load_node_of(device: str) -> NodeFacts | None:
    """The node type that the catalogue has for a device; None for devices that are sold without one."""
    canonical = _device_path(device).stem
    return next((node for node in map(load_node, node_names()) if node.device == canonical), None)


@cache
def load_power(device: str) -> PowerProfile:
    """Power of a device at work; `confidence: borrowed` where it was not measured itself."""
    canonical = _device_path(device).stem
    path = CATALOG / "power" / f"{canonical}.json"
    if not path.exists():
        raise InputError(
            f"device {canonical!r} has no power profile", field="device", expected="a measured or borrowed fit"
        )
    return PowerProfile.read(path)


@cache
def load_profile(device: str) -> DeviceProfile:
    """The fitted parameters of a device; `confidence: borrowed` where it was not measured itself."""
    canonical = _device_path(device).stem
    path = CATALOG / "profiles" / f"{canonical}.json"
    if not path.exists():
        raise InputError(f"device {canonical!r} has no profile", field="device", expected="a measured or borrowed fit")
    return DeviceProfile.read(path)


def _names(folder: str) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (CATALOG / folder).glob("*.yaml")))


def _normal(name: str) -> str:
    text = "-".join(name.lower().replace("_", " ").replace("-", " ").split())
    for maker in _MAKERS:
        text = text.removeprefix(maker)
    return text


def _path(folder: str, name: str, what: str) -> Path:
    names = _names(folder)
    if _normal(name) in names:
        return CATALOG / folder / f"{_normal(name)}.yaml"
    raise InputError(
        f"unknown {what} {name!r}", expected=f"one of {', '.join(names)}", nearest=nearest_names(name, names)
    )


@cache
def _device_path(name: str) -> Path:
    wanted = _normal(name)
    names = device_names()
    if wanted in names:
        return CATALOG / "devices" / f"{wanted}.yaml"
    known = {name: name for name in names}
    for canonical in names:
        for alias in _read_yaml(CATALOG / "devices" / f"{canonical}.yaml").get("aliases", ()):
            known[_normal(alias)] = canonical
    if wanted in known:
        return CATALOG / "devices" / f"{known[wanted]}.yaml"
    nearest = tuple(dict.fromkeys(known[near] for near in nearest_names(wanted, known)))
    raise InputError(f"unknown device {name!r}", expected=f"one of {', '.join(names)}", nearest=nearest)


def _read_yaml(path: Path) -> dict[str, Any]:
    value = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
    if not isinstance(value, dict):
        raise InputError("holds no mapping", file=str(path))
    return value


def _parse(path: Path, model: type[_T]) -> _T:
    try:
        return model.model_validate(_read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(first["msg"], file=str(path), field=field) from None
