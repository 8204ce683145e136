"""What a run came to, as plain JSON types. `docs/simulate-json.md` says what each field means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from planner.simulate.answers.over_time import decode_places, kv_over_time, queue_over_time
from planner.simulate.answers.percentiles import PERCENTILES, percentile_table
from planner.simulate.answers.steady import stability, warm_up
from planner.simulate.answers.tenants import fairness, fairness_row, tenant_rows
from planner.simulate.limits import nearest_rank
from planner.simulate.model import FleetGroup, Workload
from planner.simulate.result import REFUSALS, FleetResult, GroupLoad, LinkLoad, attainment, meets
from specs.deployment import SLO


def result_summary(
    result: FleetResult,
    workload: Workload,
    slos: Mapping[str, SLO] | None = None,
    percentiles: tuple[float, ...] = PERCENTILES,
    groups: Sequence[FleetGroup] = (),
) -> dict[str, Any]:
    """Latencies, attainment and load by class, tenant and group, levels over time, and how the run ended.

    `groups`: what was simulated; without them there is no KV cache over time.
    """
    slos = slos or {}
    return {
        "classes": [_class(result, workload, name, slos.get(name), percentiles) for name in workload.classes],
        "tenants": tenant_rows(result, workload, slos, percentiles),
        "fairness": fairness_row(fairness(result, workload)),
        "sessions": _sessions(result, workload, percentiles),
        "groups": [_group(result, workload, index) for index in range(len(result.groups))],
        "links": [_link(link, result) for link in result.links],
        "refused": _refused(result),
        "queue": queue_over_time(result, workload),
        "kv": kv_over_time(result, workload, groups),
        "warm_up_s": _warm_up_s(result, workload),
        "window_s": result.horizon_s,
        "end_s": result.end_s,
        "verdict": _verdict(result, workload, slos),
        "events": result.events,
        "event_bound_hit": result.event_bound_hit,
        "refuted_early": result.refuted_early,
    }


def _verdict(result: FleetResult, workload: Workload, slos: Mapping[str, SLO]) -> dict[str, Any]:
    verdict, steadiness = meets(result, workload, slos), stability(result, workload)
    text = str(verdict) if slos or not verdict.holds else "no objectives are declared"
    if steadiness == "saturated":
        share = result.waiting[1] / len(workload)
        text = f"saturated: at the end of the window {share:.0%} of its requests still wait for a first token; {text}"
    elif steadiness == "too short to tell" and verdict.holds:
        text = f"{text}; the window is too short to tell whether it stays so"
    return {
        "holds": verdict.holds and steadiness != "saturated",
        "saturated": steadiness == "saturated",
        "stability": steadiness,
        "text": text,
    }


def _class(
    result: FleetResult, workload: Workload, name: str, slo: SLO | None, percentiles: tuple[float, ...]
) -> dict[str, Any]:
    mask = workload.of_class(name)
    entry: dict[str, Any] = {
        "class": name,
        "requests": int(mask.sum()),
        "rejected": int(result.rejected[mask].sum()),
        **percentile_table(result, workload, mask, percentiles),
    }
    if slo is not None:
        met = attainment(result, workload, name, slo)
        entry["attainment"] = {"share": met.share, "low": met.low, "high": met.high}
        entry["goodput_per_s"] = met.share * met.requests / (result.horizon_s or 1.0)
    return entry


def _group(result: FleetResult, workload: Workload, index: int) -> dict[str, Any]:
    load: GroupLoad = result.groups[index]
    horizon_s = result.horizon_s or 1.0
    tokens = _tokens_by_replica(result, workload, index)
    return {
        "group": load.group,
        "requests": load.requests,
        "utilisation": [busy / horizon_s for busy in load.busy_s],
        "tokens_by_replica": tokens,
        "imbalance": max(tokens) * len(tokens) / sum(tokens) if sum(tokens) else None,
        "running_peak": load.running_peak,
        "kv_occupancy_peak": load.blocks_peak / load.num_blocks,
        "preemptions": load.preemptions,
        "preemptions_by_swap": load.swaps,
        "lost_to_failures": load.lost,
        "prefix_hit_rate": load.hit_tokens / load.looked_up_tokens if load.looked_up_tokens else None,
        "prefix_hit_tokens": load.hit_tokens,
        "moved_tokens": load.moved_tokens,
        "prompt_tokens_per_s": load.prompt_tokens_per_s,
        "output_tokens_per_s": load.output_tokens_per_s,
    }


def _tokens_by_replica(result: FleetResult, workload: Workload, index: int) -> list[int]:
    """Tokens of the finished requests by replica: prompts where they were computed, outputs where they were decoded."""
    done = ~np.isnan(result.e2e_s)
    group_of, replica_of = decode_places(result)
    replicas = len(result.groups[index].busy_s)
    tokens = np.zeros(replicas)
    for groups, places, counted in (
        (result.group_index, result.replica_index, workload.prompt_tokens),
        (group_of, replica_of, workload.output_tokens),
    ):
        own = done & (groups == index)
        tokens += np.bincount(places[own], weights=counted[own], minlength=replicas)
    return [int(count) for count in tokens]


def _link(link: LinkLoad, result: FleetResult) -> dict[str, Any]:
    return {
        "link": link.name,
        "utilisation": link.busy_s / (result.horizon_s or 1.0),
        "transfers": link.transfers,
        "moved_bytes": link.moved_bytes,
    }


def _refused(result: FleetResult) -> dict[str, int]:
    """Refused requests by reason; empty where nothing was refused."""
    if result.refusal is None:
        count = int(result.rejected.sum())
        return {"never fits": count} if count else {}
    counts = np.bincount(result.refusal, minlength=len(REFUSALS)).tolist()
    return {reason: count for reason, count in zip(REFUSALS, counts, strict=True) if reason and count}


def _sessions(result: FleetResult, workload: Workload, percentiles: tuple[float, ...]) -> dict[str, Any] | None:
    """Whole sessions of the classes that have any of several turns, from the first arrival to the last token.

    A session with a request that did not finish never ends.
    """
    if workload.session is None or len(workload) == 0:
        return None
    _, number, turns = np.unique(workload.session, return_inverse=True, return_counts=True)
    classes = np.unique(workload.class_index[turns[number] > 1])
    own = np.isin(workload.class_index, classes)
    if not own.any():
        return None
    arrival_s = result.arrivals_s(workload)
    begin_s, end_s = np.full(len(turns), np.inf), np.full(len(turns), -np.inf)
    np.minimum.at(begin_s, number, np.nan_to_num(arrival_s, nan=np.inf))
    np.maximum.at(end_s, number, np.nan_to_num(arrival_s + result.e2e_s, nan=np.inf))
    chosen = np.unique(number[own])
    whole_s = np.sort(np.where(np.isinf(end_s), np.inf, end_s - begin_s)[chosen])
    values = {f"p{rank:g}": nearest_rank(whole_s, rank) for rank in percentiles}
    return {
        "sessions": len(chosen),
        "turns_mean": float(turns[chosen].mean()),
        "unfinished": int(np.isinf(whole_s).sum()),
        "seconds": {key: value if np.isfinite(value) else None for key, value in values.items()},
    }


def _warm_up_s(result: FleetResult, workload: Workload) -> float | None:
    """Arrival of the first request after the start from empty replicas, told by TTFT; None: no steady part seen."""
    arrival_s = result.arrivals_s(workload)
    order = np.argsort(arrival_s, kind="stable")
    served = order[~np.isnan(result.ttft_s[order])]
    cut = warm_up(result.ttft_s[served])
    return None if cut is None else float(arrival_s[served][cut])
