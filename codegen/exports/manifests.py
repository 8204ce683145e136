"""What all Kubernetes manifests of a plan have alike: labels, selectors, addresses."""

from __future__ import annotations

import hashlib
from typing import Any

from codegen.exports.names import safe_name
from specs.plan import Plan

Manifest = dict[str, Any]

PORT = 8000
SIDE_PORT = 5600  # where a replica with a role answers the other side
EXIT_S = 30  # from the last request to the end of the process


def labels(plan: Plan, name: str) -> dict[str, str]:
    """What says of an object whose it is."""
    return {
        "app.kubernetes.io/name": name,
        "app.kubernetes.io/part-of": safe_name(plan.name),
        "app.kubernetes.io/managed-by": "capstan",
    }


def selector(name: str) -> dict[str, str]:
    """Which pods are those of a group, or of a router."""
    return {"app.kubernetes.io/name": name}


def pod_address(name: str, index: int) -> str:
    """Where a pod of a StatefulSet is found. `${NAME}`: the router's image fills it in."""
    return f"{name}-{index}.{service_address(name)}"


def service_address(name: str) -> str:
    """Where a Service is found."""
    return f"{name}.${{POD_NAMESPACE}}.svc.${{CLUSTER_DOMAIN}}:{PORT}"


def digest(text: str) -> str:
    """Another text, another pod: what only reads its configuration at the start is started anew."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
