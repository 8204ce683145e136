"""What a checkpoint's config says of its weights, wherever in the config it stands."""

from __future__ import annotations

from plan_fixture import chat_plan

from codegen.exports.checkpoint import checkpoint_dtype
from specs.architecture import load_architecture
from specs.document import DType


def test_the_quantisation_inside_a_multimodal_config_is_the_checkpoints() -> None:
    plan = chat_plan()
    (model,) = plan.architectures
    for name, dtype in (
        ("moonshotai/Kimi-K2.5", DType.INT4),
        ("Qwen/Qwen3.5-35B-A3B", None),
        ("zai-org/GLM-5-FP8", DType.FP8),
        ("nvidia/Kimi-K2.5-NVFP4", DType.FP4),  # stated outside, which decides
    ):
        config = dict(load_architecture(name).config)
        stated = plan.model_copy(update={"architectures": {model: config}})
        assert checkpoint_dtype(stated, model) == dtype, name
