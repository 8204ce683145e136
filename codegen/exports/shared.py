"""What every engine is told alike: types of activations and weights, and how long a replica may take to stop."""

from __future__ import annotations

from math import ceil

from codegen.exports.checkpoint import checkpoint_dtype
from specs.document import DType
from specs.plan import Plan, ReplicaGroup

SIXTEEN_BIT = {DType.FP16: "float16", DType.BF16: "bfloat16", DType.FP32: "float32"}


def drain_s(plan: Plan, group: ReplicaGroup) -> int:
    """Seconds that running requests get when a replica is stopped: twice the longest percentile that was simulated of
    the classes that it serves, in whole minutes, from one to sixty."""
    entries = {group.id, *(other.id for other in plan.groups if other.hands_over_to == group.id)}
    classes = {route.request_class for route in plan.routes if route.group in entries}
    predicted = (item.e2e_s for item in plan.predictions.classes if item.request_class in classes)
    longest = max((seconds for table in predicted for seconds in table.values()), default=0.0)
    return 60 * min(60, max(1, ceil(2 * longest / 60)))


def activation_dtype(plan: Plan, group: ReplicaGroup) -> str:
    """Dtype of activations: that of 16-bit weights, and where they are quantised the checkpoint's 16-bit type."""
    if group.weights_dtype in SIXTEEN_BIT:
        return SIXTEEN_BIT[group.weights_dtype]
    config = plan.architectures.get(group.model, {})
    stated = str(config.get("torch_dtype") or config.get("dtype") or "")
    return "float16" if stated in ("float16", "half") else "bfloat16"


def online_quantization(plan: Plan, group: ReplicaGroup, notes: list[str]) -> str | None:
    """`fp8` where the engine must quantise a 16-bit checkpoint while loading; None where the checkpoint decides."""
    held = checkpoint_dtype(plan, group.model)
    if held is not None:
        if held != group.weights_dtype:
            notes.append(
                f"The checkpoint's own configuration says {held} weights, the plan {group.weights_dtype}: the engine "
                "loads what the checkpoint holds. It fits, but the plan's times are those of the planned dtype."
            )
        return None
    if group.weights_dtype is DType.FP8:
        notes.append("The checkpoint is not quantised: the engine turns its weights into FP8 while loading.")
        return "fp8"
    return None
