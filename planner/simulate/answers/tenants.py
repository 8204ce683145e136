"""What each tenant got, and how evenly service was shared among the tenants that waited for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.simulate.answers.over_time import Ramps
from planner.simulate.answers.percentiles import PERCENTILES, percentile_table
from planner.simulate.limits import wilson_interval
from planner.simulate.model import FloatArray, Workload
from planner.simulate.result import BoolArray, FleetResult, good_requests
from specs.deployment import SLO

OUTPUT_WEIGHT = 2  # service of an output token over that of a prompt token, as the order `vtc` counts it
BACKLOGGED = 0.1  # share of the window in which a tenant has to have waited to be compared with others
_CELLS = 1000  # that the window is cut into


def tenant_rows(
    result: FleetResult,
    workload: Workload,
    slos: Mapping[str, SLO],
    percentiles: tuple[float, ...] = PERCENTILES,
) -> list[dict[str, Any]]:
    """One row per tenant: requests, percentiles, tokens served in the window, attainment and goodput.

    Attainment is over the tenant's requests of classes that state objectives, each judged by those of its own class.
    """
    if workload.tenant_index is None:
        return []
    good, promised = good_requests(result, workload, slos)
    horizon_s = result.horizon_s or 1.0
    rows = []
    for index, name in enumerate(workload.tenants):
        mask = np.asarray(workload.tenant_index == index, dtype=np.bool_)
        prompt, output = served_tokens(result, workload, mask, np.array([result.horizon_s]))
        row: dict[str, Any] = {
            "tenant": name,
            "requests": int(mask.sum()),
            "rejected": int(result.rejected[mask].sum()),
            **percentile_table(result, workload, mask, percentiles),
            "prompt_tokens_per_s": float(prompt[0]) / horizon_s,
            "output_tokens_per_s": float(output[0]) / horizon_s,
        }
        judged = int((mask & promised).sum())
        if judged:
            met = int((mask & good).sum())
            low, high = wilson_interval(met, judged)
            row["attainment"] = {"share": met / judged, "low": low, "high": high}
            row["goodput_per_s"] = met / horizon_s
        rows.append(row)
    return rows


@dataclass(frozen=True)
class Fairness:
    """Service rates (prompt tokens + `OUTPUT_WEIGHT` x output tokens, per second) of tenants while they waited."""

    tenants: tuple[str, ...]  # those that waited for at least `BACKLOGGED` of the window
    rates_per_s: tuple[float, ...]

    @property
    def ratio(self) -> float | None:
        """Largest rate over smallest; None where one of them got nothing or fewer than two waited."""
        if len(self.rates_per_s) < 2 or min(self.rates_per_s) <= 0:
            return None
        return max(self.rates_per_s) / min(self.rates_per_s)

    @property
    def jain(self) -> float | None:
        """Jain's index (R. Jain, D. Chiu, W. Hawe, 1984): 1 where all rates are equal, 1 / n where one gets all."""
        squares = sum(rate * rate for rate in self.rates_per_s)
        if len(self.rates_per_s) < 2 or squares == 0:
            return None
        return sum(self.rates_per_s) ** 2 / (len(self.rates_per_s) * squares)


def fairness(result: FleetResult, workload: Workload) -> Fairness | None:
    """How evenly tenants were served while they had something waiting; None without tenants.

    A tenant waits while one of its requests has arrived and has not started (has no first token, where a run knows no
    starts). The window is cut into equal cells; a cell counts for a tenant that waits at its beginning and its end.
    """
    if workload.tenant_index is None or result.horizon_s <= 0:
        return None
    edges_s = np.linspace(0.0, result.horizon_s, _CELLS + 1)
    names, rates = [], []
    for index, name in enumerate(workload.tenants):
        mask = np.asarray(workload.tenant_index == index, dtype=np.bool_)
        waits = _waiting(result, workload, mask, edges_s) > 0
        cells = waits[:-1] & waits[1:]
        if cells.mean() < BACKLOGGED:
            continue
        prompt, output = served_tokens(result, workload, mask, edges_s)
        served = np.diff(prompt + OUTPUT_WEIGHT * output)
        names.append(name)
        rates.append(float(served[cells].sum() / (cells.sum() * edges_s[1])))
    return Fairness(tuple(names), tuple(rates))


def fairness_row(found: Fairness | None) -> dict[str, Any] | None:
    """As plain JSON types; None where there is nothing to compare."""
    if found is None:
        return None
    rates = [
        {"tenant": name, "service_per_s": rate} for name, rate in zip(found.tenants, found.rates_per_s, strict=True)
    ]
    return {"output_token_weight": OUTPUT_WEIGHT, "backlogged": rates, "max_over_min": found.ratio, "jain": found.jain}


def served_tokens(
    result: FleetResult, workload: Workload, mask: BoolArray, times_s: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Prompt and output tokens that the requests under `mask` have been served by each of the moments.

    A prompt counts with its first token; the output tokens after that one are spread evenly until the last.
    """
    own = mask & ~np.isnan(result.ttft_s)
    arrival_s = result.arrivals_s(workload)[own]
    first_s = arrival_s + result.ttft_s[own]
    finish_s = np.where(np.isnan(result.e2e_s[own]), np.inf, arrival_s + result.e2e_s[own])
    prompts = np.concatenate(([0], np.cumsum(workload.prompt_tokens[own][np.argsort(first_s, kind="stable")])))
    begun = np.searchsorted(np.sort(first_s), times_s, side="right")
    output = workload.output_tokens[own].astype(np.float64)
    done = np.isfinite(finish_s)
    growing = Ramps(first_s[done], finish_s[done], np.ones(int(done.sum())), output[done])
    order = np.argsort(finish_s[done], kind="stable")
    ended = np.concatenate(([0.0], np.cumsum(output[done][order])))
    place = np.searchsorted(finish_s[done][order], times_s, side="right")
    unfinished = np.searchsorted(np.sort(first_s[~done]), times_s, side="right")
    return prompts[begun].astype(np.float64), growing.sum_at(times_s) + ended[place] + unfinished


def _waiting(result: FleetResult, workload: Workload, mask: BoolArray, times_s: FloatArray) -> NDArray[np.int64]:
    """Requests under `mask` that have arrived and wait, at each of the moments; refused ones wait for nothing."""
    own = mask & ~result.rejected
    arrival_s = result.arrivals_s(workload)[own]
    begun = np.sort(np.nan_to_num(result.starts_s(workload)[own], nan=np.inf))
    arrived = np.searchsorted(np.sort(arrival_s), times_s, side="right")
    return np.asarray(arrived - np.searchsorted(begun, times_s, side="right"), dtype=np.int64)
