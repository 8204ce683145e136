"""Declared traffic sent to any OpenAI-compatible server, and what its client saw, as `Measurements`."""

from runtime.replay.endpoint import Target
from runtime.replay.run import ReplayOptions, replay

__all__ = ["ReplayOptions", "Target", "replay"]
