"""The compiled simulator: the rules of service in C, equal to the oracle bit for bit and hundreds of times faster."""

from planner.simulate.native.build import compiled
from planner.simulate.native.run import simulate, unsupported

__all__ = ["compiled", "simulate", "unsupported"]
