"""The rules of service: pure state machines without a clock, without torch, without a model.

An engine runs them with real sequences, the simulator's oracle runs the same objects on a virtual clock.
"""

from specs.service.admission import Rejection, may_ever_run
from specs.service.batch_former import BatchFormer, Chunk, PrefillPolicy, Step
from specs.service.block_manager import BlockManager, blocks_for
from specs.service.order import FcfsQueue
from specs.service.router import ClassSplit, LeastOutstanding, RoundRobin
from specs.service.sequence import Sequence, Status

__all__ = [
    "BatchFormer",
    "BlockManager",
    "Chunk",
    "ClassSplit",
    "FcfsQueue",
    "LeastOutstanding",
    "PrefillPolicy",
    "Rejection",
    "RoundRobin",
    "Sequence",
    "Status",
    "Step",
    "blocks_for",
    "may_ever_run",
]
