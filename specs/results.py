"""Results of other load generators as `Measurements`: guidellm's JSON report, and the JSON of `vllm bench serve`.

guidellm (benchmarks.json): every benchmark in it is a class of its own, with every request: since 0.4 under
`requests.successful | incomplete | errored` with `info.timings`, before with `start_time`, `first_token_time` and the
like. `vllm bench serve --save-result --save-detailed`: parallel lists `input_lens`, `output_lens`, `ttfts`, `itls`,
`errors`, and in newer versions `start_times` and `latencies`; without `--save-detailed` there are no requests to read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from specs.errors import InputError
from specs.measurements import Environment, Load, Measurements, RequestRow, RequestStatus

MOST_BYTES = 2**30
DETAILED = ("input_lens", "output_lens", "ttfts", "itls")
CLASS = "all"  # what the requests of a file without classes are called
EXPECTED = "a Measurements document, guidellm's benchmarks.json, or JSON of `vllm bench serve --save-detailed`"


def read_result(path: str | Path, environment: Environment | None = None) -> Measurements:
    """Measurements of any known kind. `environment`: where they were taken, for files that do not say it.

    `InputError` names the file and the field; nothing is guessed where a field is missing.
    """
    path = Path(path)
    value = _json(path)
    environment = environment or Environment(device="unknown")
    try:
        if value.get("kind") == "Measurements":
            return Measurements.read(path)
        if isinstance(value.get("benchmarks"), list):
            return _guidellm(value["benchmarks"], path, environment)
        if "ttfts" in value or ("completed" in value and "request_throughput" in value):
            return _vllm_bench(value, path, environment)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            first["msg"], file=str(path), field=".".join(str(part) for part in first["loc"]) or None
        ) from None
    except InputError as error:
        error.file = error.file or str(path)
        raise
    raise InputError("is no result that is known", file=str(path), expected=EXPECTED)


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"is larger than {MOST_BYTES >> 30} GiB", file=str(path), expected="one run's result")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", file=str(path)) from None
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        raise InputError(f"is not JSON ({error})", file=str(path), line=line, expected=EXPECTED) from None
    if not isinstance(value, dict):
        raise InputError(f"holds {type(value).__name__}", file=str(path), expected=EXPECTED)
    return value


# guidellm --------------------------------------------------------------------------------------------------------


def _guidellm(benchmarks: Sequence[Any], path: Path, environment: Environment) -> Measurements:
    rows: list[RequestRow] = []
    loads: list[Load] = []
    several = len(benchmarks) > 1
    for number, benchmark in enumerate(benchmarks):
        at = f"benchmarks[{number}]"
        groups = _mapping(_mapping(benchmark, at).get("requests"), f"{at}.requests")
        load_of, label = _strategy(benchmark)
        name = f"{label}/{number + 1}" if several else CLASS
        found = [
            (status, _mapping(request, f"{at}.requests.{key}[{index}]"), f"{at}.requests.{key}[{index}]")
            for key, status in (("successful", "ok"), ("incomplete", "cut"), ("errored", "failed"))
            for index, request in enumerate(groups.get(key) or ())
        ]
        times = [_guidellm_times(request, place, status) for status, request, place in found]
        start_s = min((one.start for one in times), default=0.0)
        own = sorted(
            (_row(name, status, request, one, start_s) for (status, request, _), one in zip(found, times, strict=True)),
            key=lambda row: row.arrival_s,
        )
        if not own:
            continue
        rows += own
        loads.append(_load(name, own, load_of, f"guidellm: {label}"))
    if not rows:
        raise InputError("holds no request", field="benchmarks", expected="a report with its requests in it")
    return Measurements(
        source=f"guidellm: {path.name}", environment=environment, loads=tuple(loads), requests=tuple(rows)
    )


@dataclass(frozen=True)
class _Times:
    """Seconds of the file's own clock."""

    start: float
    target: float | None
    first: float | None
    last: float | None


def _guidellm_times(request: Mapping[str, Any], place: str, status: str) -> _Times:
    """The moments of a request, in either form."""
    info = request.get("info")
    timings = info.get("timings") if isinstance(info, dict) else None
    if isinstance(timings, dict):
        names = ("request_start", "targeted_start", "first_token_iteration", "last_token_iteration")
        source: Mapping[str, Any] = timings
        fallback = timings.get("resolve_start")
    else:
        names = ("start_time", "targeted_start", "first_token_time", "last_token_time")
        source, fallback = request, None
    values = [_optional(source.get(name), f"{place}.{name}") for name in names]
    start = values[0] if values[0] is not None else _optional(fallback, f"{place}.resolve_start")
    if start is None or (status == "ok" and (values[2] is None or values[3] is None)):
        missing = names[0] if start is None else names[2] if values[2] is None else names[3]
        raise InputError("is missing", field=f"{place}.{missing}", expected="a report of streamed requests")
    return _Times(start, *values[1:])


def _row(name: str, status: str, request: Mapping[str, Any], times: _Times, start_s: float) -> RequestRow:
    start, first, last, target = times.start, times.first, times.last, times.target
    error = request.get("error") or (request.get("info") or {}).get("error")
    ended: RequestStatus = "ok" if status == "ok" else "failed" if status == "failed" else "cut"
    return RequestRow(
        request_class=name,
        arrival_s=start - start_s,
        prompt_tokens=_tokens(request.get("prompt_tokens")),
        output_tokens=_tokens(request.get("output_tokens")),
        ttft_s=None if first is None else first - start,
        e2e_s=last - start if status == "ok" and last is not None else None,
        status=ended,
        due_s=None if target is None or target < start_s else target - start_s,
        error=str(error)[:200] if error else None,
    )


def _strategy(benchmark: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """How the requests of a benchmark were sent; an open loop where the file does not say otherwise."""
    holder = benchmark.get("config") if isinstance(benchmark.get("config"), dict) else benchmark.get("args")
    strategy = (holder or {}).get("strategy") if isinstance(holder, dict) else None
    strategy = strategy if isinstance(strategy, dict) else {}
    kind = str(strategy.get("type_") or strategy.get("kind") or "unknown")
    streams = strategy.get("streams") or strategy.get("max_concurrency")
    if kind == "synchronous":
        return {"kind": "closed", "concurrency": 1}, kind
    if kind == "concurrent" and isinstance(streams, int) and streams >= 1:
        return {"kind": "closed", "concurrency": streams}, f"{kind} {streams}"
    return {"kind": "open"}, kind


# vllm bench serve ----------------------------------------------------------------------------------------------------


def _vllm_bench(value: Mapping[str, Any], path: Path, environment: Environment) -> Measurements:
    for name in DETAILED:
        if not isinstance(value.get(name), list):
            raise InputError(
                "is missing", field=name, expected="a result of `vllm bench serve --save-result --save-detailed`"
            )
    count = len(value["ttfts"])
    columns = {name: value[name] for name in DETAILED}
    for name in ("errors", "start_times", "latencies"):
        if isinstance(value.get(name), list):
            columns[name] = value[name]
    for name, column in columns.items():
        if len(column) != count:
            raise InputError(f"has {len(column)} entries, ttfts has {count}", field=name, expected="as many")
    if count == 0:
        raise InputError("holds no request", field="ttfts", expected="at least one")
    starts = [_number(start, f"start_times[{index}]") for index, start in enumerate(columns.get("start_times", ()))]
    first = min((start for start in starts if start > 0), default=0.0)
    rows = [_bench_row(columns, index, max(0.0, starts[index] - first) if starts else 0.0) for index in range(count)]
    notes = () if starts else ("the file does not say when requests were sent",)
    rate, concurrency = value.get("request_rate"), value.get("max_concurrency")
    closed = isinstance(concurrency, int) and not isinstance(rate, int | float)
    load_of: dict[str, Any] = {"kind": "closed", "concurrency": concurrency} if closed else {"kind": "open"}
    seconds = _optional(value.get("duration"), "duration")
    rows.sort(key=lambda row: row.arrival_s)
    backend = str(value.get("backend") or value.get("endpoint_type") or "")
    return Measurements(
        source=f"vllm bench serve: {path.name}",
        environment=environment,
        model=str(value["model_id"]) if value.get("model_id") else None,
        loads=(_load(CLASS, rows, load_of, f"vllm bench serve, backend {backend or 'unknown'}", seconds),),
        requests=tuple(rows),
        notes=notes,
    )


def _bench_row(columns: Mapping[str, Sequence[Any]], index: int, arrival_s: float) -> RequestRow:
    """One request. A failed one has a text in `errors`, and zeros elsewhere."""
    error = columns["errors"][index] if "errors" in columns else ""
    gaps = columns["itls"][index]
    if not isinstance(gaps, list):
        raise InputError(f"holds {type(gaps).__name__}", field=f"itls[{index}]", expected="a list of seconds")
    ttft_s = _number(columns["ttfts"][index], f"ttfts[{index}]")
    output = _tokens(columns["output_lens"][index])
    gaps = [_number(gap, f"itls[{index}]") for gap in gaps]
    failed = bool(error) or output == 0
    # the end of the answer as the tool counts it is that of its last token
    return RequestRow(
        request_class=CLASS,
        arrival_s=arrival_s,
        prompt_tokens=_tokens(columns["input_lens"][index]),
        output_tokens=output,
        ttft_s=None if failed else ttft_s,
        e2e_s=None if failed else ttft_s + math.fsum(gaps),
        status="failed" if failed else "ok",
        error=str(error)[:200] or "no token" if failed else None,
        longest_gap_s=max(gaps, default=None),
    )


# both ----------------------------------------------------------------------------------------------------------------


def _load(
    name: str, rows: Sequence[RequestRow], load_of: Mapping[str, Any], source: str, seconds: float | None = None
) -> Load:
    span_s = max(row.arrival_s + (row.e2e_s or 0.0) for row in rows)
    seconds = seconds if seconds else span_s
    rate = len(rows) / seconds if load_of["kind"] == "open" and seconds > 0 else None
    return Load(request_class=name, seconds=seconds, rate_per_s=rate, source=source, **load_of)


def _mapping(value: Any, field: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"holds {type(value).__name__}", field=field, expected="an object")
    return value


def _number(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise InputError(f"is {value!r}"[:80], field=field, expected="a number of seconds")
    return float(value)


def _optional(value: Any, field: str) -> float | None:
    return None if value is None else _number(value, field)


def _tokens(value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(value):
        raise InputError(f"is {value!r}"[:80], field="tokens", expected="a whole number")
    return int(value)
