"""The stages of a pipeline-parallel replica: each works on one batch at a time."""

from __future__ import annotations

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
        free_s, delay_s, before = self._free_s, 0.0, 0.0
        for stage, passed in enumerate(self._passed):
            delay_s = max(delay_s, free_s[stage] - (start_s + before * seconds))
            free_s[stage] = start_s + delay_s + passed * seconds
            before = passed
        return start_s + delay_s + seconds
