"""What a simulation is given: requests, replicas and where requests may go. Frozen; arrays are read only."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from planner.cost.step_times import StepTimes
from planner.simulate.links import Handoff
from specs.plan import Limits, Scheduling
from specs.traffic.prefixes import Prefixes as Prefixes

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Workload:
    """Requests in order of arrival; arrays of one length. Arrivals in seconds from the start of the window.

    Optional arrays: None says that all requests are alike. A request with a predecessor (a turn of a session) arrives
    `gap_s` after that one has finished, and not before its own `arrival_s`.
    """

    classes: tuple[str, ...]
    class_index: IntArray
    arrival_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    window_s: float | None = None  # length of the arrival window; None: until the last arrival
    tenants: tuple[str, ...] = ()
    tenant_index: IntArray | None = None  # into `tenants`
    priority: IntArray | None = None  # lower is served first
    deadline_s: FloatArray | None = None  # moment by which the first token is due
    predicted_tokens: IntArray | None = None  # output tokens as a length predictor says
    prefixes: Prefixes | None = None
    session: IntArray | None = None  # number of the session, for sticky routing
    after: IntArray | None = None  # request that has to finish before, -1: none
    gap_s: FloatArray | None = None  # from that finish to this arrival

    def __post_init__(self) -> None:
        count = len(self.arrival_s)
        if any(array.shape != (count,) for array in self._arrays().values()):
            shapes = {name: array.shape for name, array in self._arrays().items()}
            raise ValueError(f"a workload has arrays of one length, not {shapes}")
        if self.prefixes is not None and len(self.prefixes.offsets) != count + 1:
            raise ValueError(f"prefixes of {len(self.prefixes.offsets) - 1} requests do not fit {count} requests")
        if (self.after is None) != (self.gap_s is None):
            raise ValueError("`after` and `gap_s` belong together")
        if count == 0:
            return
        if not np.isfinite(self.arrival_s).all() or self.arrival_s[0] < 0 or (np.diff(self.arrival_s) < 0).any():
            raise ValueError("arrivals must be finite, not negative and in order")
        if self.prompt_tokens.min() < 1 or self.output_tokens.min() < 1:
            raise ValueError("every request has at least one prompt token and one output token")
        if self.class_index.min() < 0 or self.class_index.max() >= len(self.classes):
            raise ValueError(f"class indices must name one of {len(self.classes)} classes")
        if self.tenant_index is not None and not 0 <= self.tenant_index.min() <= self.tenant_index.max() < len(
            self.tenants
        ):
            raise ValueError(f"tenant indices must name one of {len(self.tenants)} tenants")
        if self.after is not None and self.gap_s is not None:
            if (self.after >= np.arange(count)).any() or self.after.min() < -1:
                raise ValueError("a request can only come after one that stands before it")
            if not (np.isfinite(self.gap_s).all() and self.gap_s.min() >= 0):
                raise ValueError("gaps must be finite and not negative")

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays that are set, by field: one entry per request in each."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def horizon_s(self) -> float:
        """Length of the arrival window; rates and utilisation refer to it."""
        if self.window_s is not None:
            return self.window_s
        return float(self.arrival_s[-1]) if len(self.arrival_s) else 0.0

    def of_class(self, name: str) -> NDArray[np.bool_]:
        """Mask of the requests of one class."""
        return np.asarray(self.class_index == self.classes.index(name), dtype=np.bool_)

    def moved(self, arrival_s: FloatArray, window_s: float) -> Workload:
        """The same requests at other moments of another window; deadlines move along."""
        deadline_s = None if self.deadline_s is None else arrival_s + (self.deadline_s - self.arrival_s)
        return replace(self, arrival_s=arrival_s, window_s=window_s, deadline_s=deadline_s)

    def faster(self, factor: float) -> Workload:
        """The same requests, and the pauses between those that follow each other, in 1 / `factor` of the time."""
        moved = self.moved(self.arrival_s / factor, self.horizon_s / factor)
        return moved if self.gap_s is None else replace(moved, gap_s=self.gap_s / factor)

    def select(self, mask: NDArray[np.bool_]) -> Workload:
        """The requests under `mask`, same classes, same window. A request whose predecessor is left out has none."""
        return self.at(np.flatnonzero(mask))

    def at(self, places: IntArray) -> Workload:
        """The requests at `places`, which ascend, as `select` takes them."""
        changed: dict[str, Any] = {name: array[places] for name, array in self._arrays().items()}
        if self.after is not None:
            place = np.full(len(self), -1)
            place[places] = np.arange(len(places))
            before = self.after[places]
            changed["after"] = np.where(before >= 0, place[before], -1)
        if self.prefixes is not None:
            changed["prefixes"] = self.prefixes.select(places)
        return replace(self, **changed, window_s=self.horizon_s)

    @cached_property
    def places(self) -> tuple[IntArray, ...]:
        """Of the requests of each class, in the order of `classes`."""
        return places_of(self.class_index, len(self.classes))


def places_of(index: IntArray, count: int) -> tuple[IntArray, ...]:
    """Where each of the numbers 0 .. `count` - 1 stands in `index`, ascending; other numbers are left out."""
    if count == 1:
        return (np.flatnonzero(index == 0),)
    if len(index) and index.min() < 0:
        inside = np.flatnonzero(index >= 0)
        return tuple(inside[places] for places in places_of(index[inside], count))
    short = index.astype(np.int16) if count < 2**15 else index  # sorted by counting
    order = np.argsort(short, kind="stable")
    edges = np.searchsorted(short[order], np.arange(count + 1))
    return tuple(order[start:end] for start, end in pairwise(edges))


@dataclass(frozen=True)
class ReplicaModel:
    """One replica as the simulator sees it: how long a step takes, and what may be in it.

    With pipeline stages (`times.lanes` > 1) that many batches are in flight. Each lane is simulated as a batch of its
    own with an equal part of the seats and of the blocks and the whole token budget; a request stays in its lane. The
    lanes' steps follow each other through the stages, each of which works on one step at a time.
    """

    times: StepTimes
    limits: Limits
    num_blocks: int
    block_size_tokens: int
    scheduling: Scheduling
    prefix_caching: bool = False
    host_blocks: int = 0  # KV blocks of the host tier

    def __post_init__(self) -> None:
        times, limits, speculation = self.times, self.limits, self.scheduling.speculation
        rows = self.lane_seqs(0) * (1 if speculation is None else 1 + speculation.draft_tokens)
        drafts = "" if speculation is None else f" x {1 + speculation.draft_tokens} tokens"
        if limits.max_num_batched_tokens < rows:
            raise ValueError(f"max_num_batched_tokens must reach max_num_seqs{drafts}, or decoding sequences starve")
        if len(times.tokens_s) <= limits.max_num_batched_tokens:
            raise ValueError(f"tokens_s ends at {len(times.tokens_s) - 1}, below max_num_batched_tokens")
        if len(times.sampled_s) <= rows:
            raise ValueError(f"sampled_s ends at {len(times.sampled_s) - 1}, below max_num_seqs{drafts}")
        if times.lanes < 1 or self.num_blocks < times.lanes or self.block_size_tokens < 1:
            raise ValueError(f"{self.num_blocks} blocks cannot be shared by {times.lanes} lanes")
        if min(times.tokens_s[1 : limits.max_num_batched_tokens + 1]) <= 0:
            raise ValueError("a step takes time: tokens_s must be positive from one token on")
        if not self.scheduling.chunked_prefill:
            raise ValueError("only chunked prefill is simulated")

    def lane_seqs(self, lane: int) -> int:
        """Seats of one lane: equal parts, the first lanes take the remainder, at least one each."""
        base, rest = divmod(self.limits.max_num_seqs, self.times.lanes)
        return max(1, base + (lane < rest))

    def lane_blocks(self, lane: int) -> int:
        """KV blocks of one lane, shared out like seats."""
        base, rest = divmod(self.num_blocks, self.times.lanes)
        return base + (lane < rest)

    def can_serve(self, prompt_tokens: IntArray, output_tokens: IntArray) -> NDArray[np.bool_]:
        """Mask of requests that fit any lane alone: `specs.service.admission.may_ever_run`, on arrays."""
        total = prompt_tokens + output_tokens
        blocks = -(-(total - 1) // self.block_size_tokens)
        return (total <= self.limits.max_model_len) & (blocks <= self.num_blocks // self.times.lanes)


@dataclass(frozen=True)
class FleetGroup:
    """Replicas behind one router. A prefill group hands its requests over after their first token."""

    id: str
    replicas: int
    model: ReplicaModel
    models: tuple[ReplicaModel, ...] | None = None  # one per replica, where they are unlike; `model` is then not used
    weights: tuple[float, ...] | None = None  # capacity of each replica, by which routers judge its load
    role: Literal["unified", "prefill", "decode"] = "unified"
    handoff: Handoff | None = None

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ValueError(f"group {self.id!r} has {self.replicas} replicas")
        for name, values in (("models", self.models), ("weights", self.weights)):
            if values is not None and len(values) != self.replicas:
                raise ValueError(f"group {self.id!r} has {self.replicas} replicas and {len(values)} {name}")
        if self.weights is not None and not all(0 < weight < math.inf for weight in self.weights):
            raise ValueError(f"weights of group {self.id!r} must be positive, not {self.weights}")
        if (self.role == "prefill") != (self.handoff is not None):
            raise ValueError(f"group {self.id!r}: a prefill group states its handoff, and no other group does")
