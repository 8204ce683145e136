"""What a simulation is subject to beside replicas and requests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from planner.simulate.faults import Fault
from planner.simulate.links import Link


@dataclass(frozen=True)
class Conditions:
    """What a run is subject to beside replicas and requests."""

    router: str = "least_outstanding"
    poll_s: float = 0.0  # routers see loads as of the last multiple of it; 0: as they are
    faults: tuple[Fault, ...] = ()
    links: Mapping[str, Link] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.poll_s and not 1e-6 <= self.poll_s < math.inf:
            raise ValueError(
                f"routers look at loads every microsecond at most, or always (0), not every {self.poll_s} s"
            )
