"""What is given and what is answered: loads of experts by layer, and places of their replicas.

Sets
    l in layers, e in experts, d in devices, n in nodes;  every device has the same number of slots
Parameters
    load[l,e]   tokens (or any other measure of work) that layer l sends to expert e
    R           replicas of a layer over all devices: R = slots x devices
Decisions
    r[l,e] >= 1                replicas of expert e; each carries load[l,e] / r[l,e]
    count[l,e,d] >= 0          how many of them sit on device d
Laws
    sum_e r[l,e] = R;  sum_d count[l,e,d] = r[l,e];  sum_e count[l,e,d] = slots
    where the groups of experts divide evenly among the nodes, all replicas of a group's experts sit in one node
Objective
    minimise, for each layer, max_d sum_e count[l,e,d] load[l,e] / r[l,e]
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from specs.errors import InputError, NoPlanError


@dataclass(frozen=True)
class ExpertLoads:
    """One instance; `loads` is [layers, experts], not negative."""

    loads: np.ndarray
    replicas: int
    groups: int
    nodes: int
    devices: int

    def __post_init__(self) -> None:
        """Raises `InputError` for what is no instance and `NoPlanError` where no placement can exist."""
        for name in ("replicas", "groups", "nodes", "devices"):
            if getattr(self, name) < 1:
                raise InputError("must be at least 1", field=name)
        if self.loads.ndim != 2 or not self.loads.size:
            raise InputError("must be a rectangular table of layers by experts", field="loads")
        if not np.isfinite(self.loads).all() or (self.loads < 0).any():
            raise InputError("must be finite and not negative", field="loads")
        if self.devices % self.nodes:
            raise InputError(f"{self.devices} devices do not divide among {self.nodes} nodes", field="devices")
        if self.replicas % self.devices:
            raise InputError(f"{self.replicas} replicas do not divide among {self.devices} devices", field="replicas")
        if self.experts % self.groups:
            raise InputError(f"{self.experts} experts do not divide into {self.groups} groups", field="groups")
        if self.replicas < self.experts:
            raise NoPlanError(
                f"{self.experts} experts need at least as many replicas; {self.replicas} are allowed",
                mends=(f"allow {math.ceil(self.experts / self.devices) * self.devices} replicas",),
            )

    @property
    def layers(self) -> int:
        return int(self.loads.shape[0])

    @property
    def experts(self) -> int:
        return int(self.loads.shape[1])

    @property
    def slots(self) -> int:
        """Replicas on one device."""
        return self.replicas // self.devices

    @property
    def by_node(self) -> bool:
        """Whether groups are kept within nodes: only where they divide evenly."""
        return self.nodes > 1 and self.groups % self.nodes == 0

    @property
    def partings(self) -> int:
        """Ways to part the groups among nodes."""
        size = self.groups // self.nodes
        return math.factorial(self.groups) // int(math.factorial(size) ** self.nodes * math.factorial(self.nodes))


@dataclass(frozen=True)
class ExpertPlacement:
    """`experts[l, d]` lists the experts on a device (one entry a slot); loads and bounds are [layers]."""

    experts: np.ndarray
    max_load: np.ndarray
    bound: np.ndarray


def device_loads(loads: np.ndarray, experts: np.ndarray) -> np.ndarray:
    """[layers, devices]: what each device carries, counted again from the placement alone.

    Raises `ValueError` where an expert has no replica.
    """
    carried = np.empty(experts.shape[:2])
    for layer, (load, row) in enumerate(zip(loads, experts, strict=True)):
        replicas = np.bincount(row.ravel(), minlength=len(load))
        if len(replicas) != len(load) or (replicas == 0).any():
            raise ValueError(f"layer {layer}: every expert needs a replica, and only known experts have some")
        carried[layer] = (load / replicas)[row].sum(axis=1)
    return carried
