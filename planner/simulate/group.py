"""The replicas of one group, which of them are up, and the router between them."""

from __future__ import annotations

from bisect import insort
from collections import deque
from typing import NamedTuple

import numpy as np

from planner.simulate.links import Transfer
from planner.simulate.model import FleetGroup, ReplicaModel, Workload
from planner.simulate.pipeline import PipelinedReplica
from planner.simulate.record import LaneLoad, Outstanding, Record
from planner.simulate.step import StepLane
from specs.service import RequestKey, Router, Sequence, View, may_ever_run

Replica = StepLane | PipelinedReplica


class Entry(NamedTuple):
    """A request on its way into a group, tokens sampled of it so far, and tokens whose KV cache it brings."""

    request: int
    generated_tokens: int = 0
    computed_tokens: int = 0


class Group:
    """Sends requests to replicas that are up and can hold them. While there is none, requests wait here in order."""

    def __init__(
        self,
        group: FleetGroup,
        workload: Workload,
        record: Record,
        clock: list[float],
        router: Router,
        placed: list[int],
        *,
        polled: bool,
    ) -> None:
        """`placed`: replica by request, written here. `polled`: the router's view is renewed by `refresh` only."""
        self.group = group
        self.waiting: deque[Entry] = deque()
        self.handed: list[tuple[int, int, Sequence]] = []  # replica, lane and request after its first token
        self.lost = 0  # requests that were here when their replica failed
        self._models = group.models or (group.model,) * group.replicas
        self._placed = placed
        self._prompt = record.prompt
        self._router = router
        self._polled = polled
        self._sessions = None if workload.session is None else workload.session.tolist()
        self._prefixes = workload.prefixes if router.reads_units else None
        self._holds = _holds(group, self._models, workload)
        self._unlike = any(mask is not self._holds[0] for mask in self._holds)
        self._outstanding = Outstanding([0] * group.replicas, [[0] * model.times.lanes for model in self._models])
        self._up = list(range(group.replicas))
        idle = [0] * group.replicas
        self._view = View(
            list(idle) if polled else self._outstanding.replicas, list(idle), self._up, group.weights or ()
        )
        self.replicas: list[Replica] = []
        for index, model in enumerate(self._models):
            self.replicas.append(
                StepLane(model, 0, index, record, self._outstanding, clock)
                if model.times.lanes == 1
                else PipelinedReplica(model, index, record, self._outstanding, clock)
            )
        if group.handoff is not None:
            for replica in self.replicas:
                for lane in replica.lanes if isinstance(replica, PipelinedReplica) else (replica,):
                    lane.handed = self.handed

    @property
    def loads(self) -> list[list[LaneLoad]]:
        """By replica and lane."""
        return [replica.loads if isinstance(replica, PipelinedReplica) else [replica.load] for replica in self.replicas]

    @property
    def max_model_len(self) -> int:
        return max(model.limits.max_model_len for model in self._models)

    def can_hold(self, entry: Entry) -> bool:
        """Whether any replica, up or not, could serve the request alone."""
        if not self._unlike and entry.generated_tokens == 0:
            return self._holds[0][entry.request]
        return any(self._replica_holds(replica, entry) for replica in range(len(self.replicas)))

    def send(self, entry: Entry, now_s: float) -> None:
        """Route inside the group: a replica by the router, its emptiest lane. With none to choose from it waits."""
        view, outstanding = self._view, self._outstanding
        if self._unlike:
            view.up = [replica for replica in self._up if self._replica_holds(replica, entry)]
        if not view.up:
            self.waiting.append(entry)
            return
        if self._router.reads_kv and not self._polled:
            view.kv_blocks = self._kv_blocks()
        replica = self._router.choose(view, self._key(entry.request))
        self._placed[entry.request] = replica
        outstanding.replicas[replica] += 1
        by_lane = outstanding.lanes[replica]
        lane = by_lane.index(min(by_lane)) if len(by_lane) > 1 else 0
        by_lane[lane] += 1
        target = self.replicas[replica]
        if isinstance(target, PipelinedReplica):
            target.arrive(entry.request, now_s, lane, entry.generated_tokens, entry.computed_tokens)
        else:
            target.arrive(entry.request, now_s, entry.generated_tokens, entry.computed_tokens)

    def refresh(self) -> None:
        """The router looks at the loads."""
        self._view.outstanding = list(self._outstanding.replicas)
        if self._router.reads_kv:
            self._view.kv_blocks = self._kv_blocks()

    def fail(self, replica: int, now_s: float) -> list[Sequence]:
        """A replica goes down with all it has; returns the requests that were there, but for those handed over."""
        self._up.remove(replica)
        self._router.forget(replica)
        self._outstanding.replicas[replica] = 0
        by_lane = self._outstanding.lanes[replica]
        by_lane[:] = [0] * len(by_lane)
        return self.replicas[replica].fail(now_s)

    def recover(self, replica: int) -> list[Entry]:
        """A replica comes up, empty; returns the requests that waited for one, to be sent again."""
        insort(self._up, replica)
        waiting = list(self.waiting)
        self.waiting.clear()
        return waiting

    def release(self, transfer: Transfer, now_s: float) -> None:
        """A handed-over request has arrived on the other side: its blocks are free."""
        self._outstanding.replicas[transfer.replica] -= 1
        self._outstanding.lanes[transfer.replica][transfer.lane] -= 1
        target = self.replicas[transfer.replica]
        if isinstance(target, PipelinedReplica):
            target.release(transfer.sequence, now_s, transfer.lane)
        else:
            target.release(transfer.sequence, now_s)

    def _kv_blocks(self) -> list[int]:
        return [replica.blocks_in_use for replica in self.replicas]

    def _replica_holds(self, replica: int, entry: Entry) -> bool:
        """A prefill replica has to hold what is known by now, the others all that there will be."""
        if entry.generated_tokens == 0 or self.group.role != "prefill":
            return self._holds[replica][entry.request]
        model = self._models[replica]
        refused = may_ever_run(
            self._prompt[entry.request] + entry.generated_tokens,
            1,
            max_model_len=model.limits.max_model_len,
            num_blocks=model.num_blocks // model.times.lanes,
            block_size_tokens=model.block_size_tokens,
        )
        return refused is None

    def _key(self, request: int) -> RequestKey:
        session = -1 if self._sessions is None else self._sessions[request]
        if self._prefixes is None:
            return RequestKey(request, session)
        whole = self._prompt[request] // self._prefixes.unit_tokens
        return RequestKey(request, session, self._prefixes.of(request)[:whole])


def _holds(group: FleetGroup, models: tuple[ReplicaModel, ...], workload: Workload) -> list[list[bool]]:
    """By replica: which requests it could serve alone. Replicas of one model share a list."""
    output = workload.output_tokens
    if group.role == "prefill":
        output = np.ones_like(output)
    masks: dict[int, list[bool]] = {}
    for model in models:
        if id(model) not in masks:
            masks[id(model)] = model.can_serve(workload.prompt_tokens, output).tolist()
    return [masks[id(model)] for model in models]
