"""A network that nobody declared cable by cable: nodes have their ports, and what is behind them is wide enough."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from specs.deployment import HardwareSpec
from specs.deployment.cables import devices_of_node

Cable = tuple[str, str]


@dataclass(frozen=True)
class Ports:
    """Each node has one cable to its pool's switch, as wide as all ports of its devices; switches do not hold it up."""

    hardware: HardwareSpec
    port_bytes_per_s: dict[str, float]  # of one device, by pool

    def cables(self, source: str, target: str) -> Iterator[Cable]:
        """The cables from one node to another, each as (from, to)."""
        ends = [f"switch of {node.partition('/')[0]}" for node in (source, target)]
        yield source, ends[0]
        if ends[0] != ends[1]:
            yield ends[0], ends[1]
        yield ends[1], target

    def capacity(self, cable: Cable) -> float:
        """Bytes per second of each direction; infinite between switches."""
        node = next((end for end in cable if not end.startswith("switch of ")), None)
        if node is None:
            return math.inf
        name, _, index = node.partition("/")
        return self.port_bytes_per_s[name] * devices_of_node(self.hardware.pool(name), int(index))
