"""The rules of service: pure state machines without a clock, without torch, without a model.

An engine runs them with real sequences, the simulator's oracle runs the same objects on a virtual clock.
"""

from specs.service.admission import Rejection, may_ever_run
from specs.service.batch_former import BatchFormer, PrefillPolicy
from specs.service.block_manager import BlockManager, blocks_for
from specs.service.hashing import splitmix64
from specs.service.order import FcfsQueue, Queue
from specs.service.queues import make_queue
from specs.service.router import (
    ROUTERS,
    ClassSplit,
    LeastKV,
    LeastOutstanding,
    PowerOfTwo,
    PrefixAware,
    RequestKey,
    RoundRobin,
    Router,
    Sticky,
    View,
    make_router,
)
from specs.service.sequence import Sequence, Status
from specs.service.speculation import accepted_tokens
from specs.service.step import Chunk, Step

__all__ = [
    "ROUTERS",
    "BatchFormer",
    "BlockManager",
    "Chunk",
    "ClassSplit",
    "FcfsQueue",
    "LeastKV",
    "LeastOutstanding",
    "PowerOfTwo",
    "PrefillPolicy",
    "PrefixAware",
    "Queue",
    "Rejection",
    "RequestKey",
    "RoundRobin",
    "Router",
    "Sequence",
    "Status",
    "Step",
    "Sticky",
    "View",
    "accepted_tokens",
    "blocks_for",
    "make_queue",
    "make_router",
    "may_ever_run",
    "splitmix64",
]
