"""Experts of a model on the ranks of a replica: copies and places from measured loads, and the skew that is left.

The skew (load of the fullest rank over the mean) is what the slowest rank of a step has to compute and to receive more
than the mean; with it the costs of a layout are those of its placement, not of an assumed router.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from specs.architecture import Architecture
from specs.architecture.mlps import MixtureOfExperts
from specs.errors import NoPlanError
from specs.plan import ExpertPlacement, Layout

MOST_SEARCHED = 4_000_000  # partial packings times companions of one placement: a tenth of a second, for many layouts


def mixtures(architecture: Architecture) -> tuple[MixtureOfExperts, ...]:
    """The layers with routed experts, in order."""
    return tuple(layer.mlp for layer in architecture.layers if isinstance(layer.mlp, MixtureOfExperts))


@dataclass(frozen=True, eq=False)
class MeasuredExperts:
    """Measured loads of one model's experts, [layers with experts, experts], and its placements, made once each."""

    loads: NDArray[np.float64]
    _placed: dict[tuple[int, int, int], ExpertPlacement | None] = field(default_factory=dict)

    def placement(self, layout: Layout, node_devices: int) -> ExpertPlacement | None:
        """The best placement found for a layout, each layer for itself; None where ranks do not divide the slots."""
        key = (layout.expert_parallel, layout.redundant_experts, node_devices)
        if key not in self._placed:
            self._placed[key] = self._place(*key)
        return self._placed[key]

    def _place(self, ranks: int, redundant: int, node_devices: int) -> ExpertPlacement | None:
        from planner.optimize.expert_placement.instance import ExpertLoads  # only where loads are declared
        from planner.optimize.expert_placement.place import place_experts

        slots = self.loads.shape[1] + redundant
        if ranks == 1 or slots % ranks:
            return None
        nodes = max(1, ranks // node_devices) if ranks % node_devices == 0 else 1
        try:
            found = place_experts(
                ExpertLoads(self.loads, slots, 1, 1 if nodes == 1 else nodes, ranks), searched=MOST_SEARCHED
            )
        except NoPlanError:
            return None
        mean = self.loads.sum(axis=1) / ranks
        return ExpertPlacement(
            slots_per_rank=slots // ranks,
            physical_to_logical=tuple(
                tuple(int(expert) for rank in layer for expert in np.sort(rank)) for layer in found.experts
            ),
            skew=float((found.max_load / mean).mean()),
            skew_bound=float((found.bound / mean).mean()),
        )


def redundancies(architecture: Architecture, expert_parallel: int) -> tuple[int, ...]:
    """Numbers of copies to try beside the experts themselves: none, and one or two more slots on each rank."""
    if expert_parallel == 1 or not mixtures(architecture):
        return (0,)
    return tuple(extra * expert_parallel for extra in (0, 1, 2))
