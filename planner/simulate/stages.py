"""The stages of a pipeline-parallel replica: each works on one batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


class Stages:
    """When each stage of one replica is free again. `shares`: of a step's time, by stage; they add up to 1."""

    def __init__(self, shares: tuple[float, ...]) -> None:
        self._passed = tuple(accumulate(shares))  # share of a step's time after which it leaves each stage
        self._free_s = [0.0] * len(shares)

    @property
    def entry_s(self) -> float:
        """When the first stage takes the next batch."""
        return self._free_s[0]

    def clear(self) -> None:
        """What is in the stages is lost: all are free."""
        self._free_s = [0.0] * len(self._free_s)

    def run(self, start_s: float, seconds: float) -> float:
        """A step of `seconds` enters at `start_s` (not before `entry_s`); returns when it leaves the last stage.

        A stage that is still busy with the batch before holds this one up.
        """
        return self._pass(start_s, [passed * seconds for passed in self._passed]) + seconds

    def run_unlike(self, start_s: float, stage_seconds: Sequence[float]) -> float:
        """The same of a step that takes each stage its own time."""
        passed_s = list(accumulate(stage_seconds))
        return self._pass(start_s, passed_s) + passed_s[-1]

    def _pass(self, start_s: float, passed_s: Sequence[float]) -> float:
        """When the step would have entered so as to meet no busy stage; `passed_s`: from there until it leaves each."""
        free_s, delay_s, before_s = self._free_s, 0.0, 0.0
        for stage, after_s in enumerate(passed_s):
            delay_s = max(delay_s, free_s[stage] - (start_s + before_s))
            free_s[stage] = start_s + delay_s + after_s
            before_s = after_s
        return start_s + delay_s
