"""`make_queue`: the queue of each order of service."""

from __future__ import annotations

from typing import Literal

from specs.service.mlfq import MlfqQueue
from specs.service.order import FcfsQueue, Queue
from specs.service.orders import KeyQueue, by_deadline, by_priority, by_remainder, by_size
from specs.service.vtc import VtcQueue

Order = Literal["fcfs", "priority", "edf", "sjf", "srpt", "mlfq", "vtc"]


def make_queue(order: Order, *, mlfq_quantum_tokens: int = 512) -> Queue:
    """An empty queue of an order of service, by its name in `specs.plan.Scheduling`."""
    match order:
        case "fcfs":
            return FcfsQueue()
        case "priority":
            return KeyQueue(by_priority)
        case "edf":
            return KeyQueue(by_deadline)
        case "sjf":
            return KeyQueue(by_size)
        case "srpt":
            return KeyQueue(by_remainder, preemptive=True)
        case "mlfq":
            return MlfqQueue(mlfq_quantum_tokens)
        case "vtc":
            return VtcQueue()
