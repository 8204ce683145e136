"""What the rooms agree on: documents, quantities, model families, rules of service, facts. No search, no torch.

Importing this package loads nothing else; the names below are fetched from their modules when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specs.bundle import Bundle, RuntimeConfig
    from specs.deployment import DeploymentSpec, load_deployment
    from specs.errors import CapstanError, InputError, NoPlanError, NotHonouredError
    from specs.measurements import Measurements
    from specs.plan import Plan

__all__ = [
    "Bundle",
    "CapstanError",
    "DeploymentSpec",
    "InputError",
    "Measurements",
    "NoPlanError",
    "NotHonouredError",
    "Plan",
    "RuntimeConfig",
    "load_deployment",
]

_HOME = {
    "Bundle": "specs.bundle",
    "RuntimeConfig": "specs.bundle",
    "DeploymentSpec": "specs.deployment",
    "load_deployment": "specs.deployment",
    "CapstanError": "specs.errors",
    "InputError": "specs.errors",
    "NoPlanError": "specs.errors",
    "NotHonouredError": "specs.errors",
    "Measurements": "specs.measurements",
    "Plan": "specs.plan",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'specs' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
