"""One rank of a layout, as its operations see it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.latency import OperatorLatency
from planner.cost.roofline import Floats
from specs.architecture.model import Architecture
from specs.document import DType
from specs.plan import Layout
from specs.profile import DeviceFacts, DeviceProfile


@dataclass(frozen=True)
class Rank:
    """`expert_skew`: load of the fullest rank's experts over the mean; None: what the device's tables assume."""

    architecture: Architecture
    layout: Layout
    weights: DType
    kv_dtype: DType
    device: DeviceFacts
    profile: DeviceProfile
    latency: OperatorLatency
    expert_skew: float | None = None

    @property
    def plain(self) -> DType:
        """Type of weights that quantisation leaves alone."""
        if self.weights.bytes >= 2.0:
            return self.weights
        return DType.BF16 if DType.BF16 in self.device.flops else DType.FP16

    @property
    def ranks(self) -> int:
        return self.layout.tensor_parallel

    @property
    def expert_world(self) -> int:
        """Ranks that the routed experts are spread over: those of all attention replicas of a stage."""
        return self.layout.tensor_parallel * self.layout.attention_data_parallel

    def own(self, amount: Floats) -> Floats:
        """The part of the replica's tokens or sequences that one attention replica computes."""
        result: Floats = np.ceil(amount / self.layout.attention_data_parallel)
        return result
