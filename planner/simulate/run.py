"""The loop of a simulation: one moment after the other, in order of time.

At each moment come, in this order, what steps end, faults and recoveries, handoffs, and arrivals; of one kind, by group
and replica or in request order. Steps that start at that moment are formed last.

Where nothing that happens in one replica brings about an event elsewhere, the moments are those of arrivals and faults
only, and each replica runs on by itself in between. Where requests depend on each other or are handed over, every end
of a step is a moment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from planner.simulate.arrivals import Arrivals
from planner.simulate.conditions import Conditions
from planner.simulate.faults import FaultSchedule
from planner.simulate.gather import Outcome, gather
from planner.simulate.group import Entry, Group
from planner.simulate.links import LinkQueue, Transfer
from planner.simulate.model import FleetGroup, Workload
from planner.simulate.record import EventBoundError, Record
from planner.simulate.refute import Refuter
from planner.simulate.result import REFUSALS, FleetResult, LinkLoad
from planner.simulate.routing import class_splits, handoff_targets
from specs.deployment import SLO
from specs.plan import Route
from specs.service import Sequence as ServedSequence
from specs.service import make_router

_CHECK_EVERY = 16  # arrivals between two looks at the limits
_LOOK_S = 2.0  # between two looks otherwise
_REPORT_EVERY = 500  # arrivals between two reports of progress
_TOO_LONG, _TOO_LARGE, _QUEUE_FULL, _SESSION_ENDED, _NO_REPLICA = (
    REFUSALS.index(reason)
    for reason in ("too long", "larger than the KV cache", "queue full", "session ended", "no replica up")
)


class FleetRun:
    """One run, from empty replicas until the last request is done."""

    def __init__(
        self,
        groups: Sequence[FleetGroup],
        routes: Sequence[Route],
        workload: Workload,
        arrivals: Arrivals,
        conditions: Conditions,
        *,
        max_events: int,
        refute: Mapping[str, SLO] | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """Raises `ValueError` on routes, handoffs or faults that do not fit the groups."""
        self._splits = class_splits(groups, routes, workload)
        self._targets = handoff_targets(groups, conditions.links)
        self._faults = FaultSchedule(conditions.faults, groups)
        self.record = record = Record.of(workload, max_events, conditions.seed)
        self._workload = workload
        self._arrivals = arrivals
        self._max_events = max_events
        self._poll_s = conditions.poll_s
        self._polled = 0  # multiple of `poll_s` at which routers looked last
        self._clock: list[float] = []  # by replica: when it has something to do
        count = len(workload)
        self._group_of, self._replica_of = [-1] * count, [-1] * count
        self._decode_group_of, self._decode_replica_of = [-1] * count, [-1] * count
        self.groups = [
            Group(
                group,
                workload,
                record,
                self._clock,
                make_router(conditions.router, conditions.seed),
                self._decode_replica_of if group.role == "decode" else self._replica_of,
                polled=conditions.poll_s > 0,
            )
            for group in groups
        ]
        self._replicas = tuple(enumerate(replica for group in self.groups for replica in group.replicas))
        self._links = {name: LinkQueue(link, workload.horizon_s) for name, link in sorted(conditions.links.items())}
        self._coupled = arrivals.dependent or any(target is not None for target in self._targets)
        self._refusal = [0] * count
        self._class_index = workload.class_index.tolist()
        self._refuter = Refuter(workload, refute, record, arrivals.arrival_s) if refute else None
        self._look_s = _LOOK_S
        self._progress = progress
        self._arrived = self._ended = self._refused = 0  # so many are dealt with

    def result(self) -> FleetResult:
        """Run, and gather what happened."""
        refuted, event_bound_hit = None, False
        try:
            refuted = self._run()
        except EventBoundError:
            event_bound_hit = True
        record = self.record
        outcome = Outcome(
            arrival_s=self._arrivals.arrival_s,
            start_s=record.start_s,
            first_s=record.first_s,
            finish_s=record.finish_s,
            preemptions=record.preemptions,
            cached_tokens=record.cached,
            refusal=self._refusal,
            group_index=self._group_of,
            replica_index=self._replica_of,
            decode_group_index=self._decode_group_of,
            decode_replica_index=self._decode_replica_of,
            loads=[group.loads for group in self.groups],
            lost=[group.lost for group in self.groups],
            links=tuple(LinkLoad(name, q.busy_s, q.transfers, q.moved_bytes) for name, q in self._links.items()),
            events=self._max_events - record.events_left,
            event_bound_hit=event_bound_hit,
            refuted=refuted,
        )
        return gather([group.group for group in self.groups], self._workload, outcome)

    def _run(self) -> str | None:
        """Returns the limit that ended the run, if one did."""
        now_s = 0.0
        while (next_s := self._next_s()) < math.inf:
            now_s = next_s
            self._advance(now_s)
            self._note_ends(now_s)
            if self._coupled and (refuted := self._look(now_s)):
                return refuted
            if self._faults.next_s <= now_s:
                self._fail_and_recover(now_s)
            if self._links:
                self._hand_over(now_s)
            if refuted := self._let_in(now_s):
                return refuted
            if self._coupled:
                self._advance_replicas(math.nextafter(now_s, math.inf))
                self._note_ends(now_s)
        if refuted := self._drain(now_s):
            return refuted
        self._note_ends(now_s)
        for group in self.groups:  # nothing comes up any more
            while group.waiting:
                self._refuse(group.waiting.popleft().request, _NO_REPLICA, now_s)
        return None

    def _next_s(self) -> float:
        next_s = self._arrivals.next_s
        if self._faults.next_s < next_s:
            next_s = self._faults.next_s
        if self._coupled:
            next_s = min(next_s, min(self._clock), *(link.next_s for link in self._links.values()))
        return next_s

    # ------------------------------------------------------------------------------------------------ time goes on

    def _advance(self, now_s: float) -> None:
        """All that ends by `now_s`. On the way routers look at the loads, at the last multiple of `poll_s`."""
        if self._poll_s > 0:
            multiple = math.floor(now_s / self._poll_s)
            multiple -= multiple * self._poll_s > now_s
            if multiple > self._polled:
                self._polled = multiple
                self._advance_replicas(multiple * self._poll_s)
                for group in self.groups:
                    group.refresh()
        self._advance_replicas(now_s)

    def _advance_replicas(self, until_s: float) -> None:
        clock = self._clock
        if min(clock) <= until_s:
            for index, replica in self._replicas:
                if clock[index] <= until_s:
                    replica.advance(until_s)

    def _drain(self, now_s: float) -> str | None:
        """Let everything finish; with a refuter, look at the limits now and then."""
        while (next_s := min(self._clock)) < math.inf:
            until_s = max(now_s, next_s) + _LOOK_S if self._refuter is not None else math.inf
            for _, replica in self._replicas:
                replica.advance(until_s)
            now_s = until_s
            if self._refuter is not None and (refuted := self._refuter.check(now_s)):
                return refuted
        return None

    def _look(self, now_s: float) -> str | None:
        if self._refuter is None or now_s < self._look_s:
            return None
        self._look_s = now_s + _LOOK_S
        return self._refuter.check(now_s)

    # ----------------------------------------------------------------------------------------- events of one moment

    def _note_ends(self, now_s: float) -> None:
        """What replicas finished, refused and handed over since the last time."""
        record = self.record
        if self._arrivals.dependent:
            for request in record.finished[self._ended :]:
                self._arrivals.ended(request, record.finish_s[request])
            self._ended = len(record.finished)
        while self._refused < len(record.refused):
            self._refused += 1
            self._refuse(record.refused[self._refused - 1], _QUEUE_FULL, now_s)
        if self._links:
            self._send_caches(now_s)

    def _send_caches(self, now_s: float) -> None:
        """Requests with their first token leave for the decode side, in request order."""
        transfers = []
        for index, group in enumerate(self.groups):
            if (handoff := group.group.handoff) is None:
                continue
            for replica, lane, sequence in group.handed:
                size_bytes = handoff.bytes_per_token * sequence.computed_tokens
                transfers.append((Transfer(sequence, index, replica, lane, size_bytes), handoff.link))
            group.handed.clear()
        for transfer, link in sorted(transfers, key=lambda entry: entry[0].sequence.id):
            self._links[link].send(transfer, now_s)

    def _fail_and_recover(self, now_s: float) -> None:
        """Replicas go down and come up; then what waited is sent again, and what was lost, in request order."""
        failed, recovered = self._faults.due(now_s)
        lost: list[ServedSequence] = []
        for group, replica in failed:
            here = self.groups[group].fail(replica, now_s)
            for link in self._links.values():
                here += [transfer.sequence for transfer in link.drop(group, replica, now_s)]
            self.groups[group].lost += len(here)
            lost += here
        waiting = [(group, entry) for group, replica in recovered for entry in self.groups[group].recover(replica)]
        for sequence in sorted(lost, key=lambda sequence: sequence.id):
            self._decode_group_of[sequence.id] = self._decode_replica_of[sequence.id] = -1
            waiting.append((self._group_of[sequence.id], Entry(sequence.id, sequence.generated_tokens)))
        for group, entry in waiting:
            if self.record.events_left <= 0:
                raise EventBoundError
            self.record.events_left -= 1
            self._enter(group, entry, now_s)

    def _hand_over(self, now_s: float) -> None:
        """KV caches that have crossed their link: the request enters the decode group, its prefill blocks are free."""
        arrived = [transfer for link in self._links.values() for transfer in link.arrived(now_s)]
        for transfer in sorted(arrived, key=lambda transfer: transfer.sequence.id):
            sequence, target = transfer.sequence, self._targets[transfer.group]
            assert target is not None
            self.groups[transfer.group].release(transfer, now_s)
            self._decode_group_of[sequence.id] = target
            self._enter(target, Entry(sequence.id, sequence.generated_tokens, sequence.computed_tokens), now_s)

    def _let_in(self, now_s: float) -> str | None:
        """The arrivals of this moment."""
        while self._arrivals.next_s <= now_s:
            looks = self._refuter is not None and self._arrived % _CHECK_EVERY == 0
            if looks and self._refuter is not None and (refuted := self._refuter.check(now_s)):
                return refuted
            if self._progress is not None and self._arrived % _REPORT_EVERY == 0:
                self._progress(self._arrived / len(self._group_of))
            self._arrived += 1
            request = self._arrivals.pop()
            if self._arrivals.dependent and self.record.deadline_s is not None:  # counts from the actual arrival
                self.record.deadline_s[request] += now_s - float(self._workload.arrival_s[request])
            chosen = self._splits[self._class_index[request]].next()
            self._group_of[request] = chosen
            target = self._targets[chosen]
            entry = Entry(request)
            if target is not None and self.record.output[request] > 1 and not self.groups[target].can_hold(entry):
                self._refuse(request, self._why(target, request), now_s)
            else:
                self._enter(chosen, entry, now_s)
        return None

    def _enter(self, group: int, entry: Entry, now_s: float) -> None:
        if self.groups[group].can_hold(entry):
            self.groups[group].send(entry, now_s)
        else:
            self._refuse(entry.request, self._why(group, entry.request), now_s)

    def _why(self, group: int, request: int) -> int:
        """Reason for which a group cannot hold a request."""
        tokens = self.record.prompt[request] + self.record.output[request]
        return _TOO_LONG if tokens > self.groups[group].max_model_len else _TOO_LARGE

    def _refuse(self, request: int, reason: int, now_s: float) -> None:
        """A request is refused, and with it all that were to follow it."""
        refused = [(request, reason)]
        while refused:
            request, reason = refused.pop()
            self._refusal[request] = reason
            if self._refuter is not None:
                self._refuter.reject(request)
            refused += [(follower, _SESSION_ENDED) for follower in self._arrivals.refused(request, now_s)]
