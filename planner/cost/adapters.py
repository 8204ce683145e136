"""LoRA adapters served beside a model: what they add to every step, and the memory they take.

Each product of the layers (routed experts aside) gets two small ones: to `rank` elements and back. No published table
measures such kernels; they are taken as reads of the adapters that a step needs, at the rate of elementwise kernels, in
two launches. Requests ask for adapters alike, and each token is counted as one that may ask for another: of a long
prompt, which has one adapter, that is careful.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from planner.cost.latency import OperatorLatency
from planner.cost.roofline import ACTIVATION_BYTES, Floats
from planner.cost.step_work import Cost, Operation, StepShape
from specs.architecture.layer import Layer
from specs.architecture.model import Architecture
from specs.architecture.operators import Linear
from specs.deployment import AdaptersSpec
from specs.document import DType
from specs.plan import Layout


def adapter_operations(
    architecture: Architecture, layout: Layout, adapters: AdaptersSpec, latency: OperatorLatency
) -> tuple[Operation, ...]:
    """What one rank runs beside the products of its layers."""
    return tuple(
        _operation(elements * adapters.rank, count, adapters.count, layout.attention_data_parallel, latency)
        for layer, count in architecture.distinct_layers
        for elements in _elements(layer, layout.tensor_parallel)
    )


def adapter_bytes(architecture: Architecture, layout: Layout, adapters: AdaptersSpec) -> int:
    """Bytes of all adapters on the rank of the stage with the most layers, in 16 bit; all of them stay loaded."""
    most, begin = 0.0, 0
    for stage in layout.pipeline_stages:
        layers = architecture.layer_counts(range(begin, begin + stage))
        begin += stage
        most = max(most, sum(count * sum(_elements(layer, layout.tensor_parallel)) for layer, count in layers))
    return round(adapters.count * adapters.rank * most * ACTIVATION_BYTES)


def _elements(layer: Layer, ranks: int) -> Iterator[float]:
    """Inputs and outputs on one rank, of each product of a layer; of fused ones, inputs count for each part."""
    for operator in layer.operators():
        if isinstance(operator, Linear) and operator.quantised:
            inputs, outputs = operator.rank_shape(ranks)
            yield float(max(1, len(operator.segments)) * inputs + outputs)


def _operation(elements: float, count: int, adapters: int, groups: int, latency: OperatorLatency) -> Operation:
    """Of one product: `elements` of each adapter are read."""
    launch_s = float(latency.elementwise(np.ones(1))[0])

    def cost(shape: StepShape) -> Cost:
        tokens = np.ceil(shape.tokens / groups)
        touched: Floats = adapters * (1.0 - (1.0 - 1.0 / adapters) ** tokens)
        moved = touched * elements * ACTIVATION_BYTES
        seconds = np.where(tokens > 0, launch_s + latency.elementwise(np.maximum(moved, 1.0)), 0.0)
        return Cost(2.0 * tokens * elements, moved, seconds)

    return Operation("adapter", "elementwise", DType.BF16, "column", count, cost)
