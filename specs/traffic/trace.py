"""Recorded requests: when they came, how long prompt and output were."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from specs.errors import InputError, nearest_names
from specs.traffic import formats
from specs.traffic.prefixes import Sharing

TraceFormat = Literal["azure", "burstgpt", "mooncake", "sharegpt", "csv"]
MAX_TRACE_BYTES = 512 * 1024**2  # unpacked; a larger file is a mistake or a gzip bomb


@dataclass(frozen=True)
class Trace:
    """Requests in order of arrival; arrays of one length, times in seconds from the first request.

    Optional arrays: None where the file does not say.
    """

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    sha256: str  # of the file's bytes, as stored
    timed: bool = True  # False: the file has lengths only, `arrival_s` counts requests one second apart
    start_s: float = 0.0  # where `busiest` cut, in seconds of the (scaled) trace
    notes: tuple[str, ...] = ()  # what a user should know about the file
    tenants: tuple[str, ...] = ()
    tenant_index: NDArray[np.int64] | None = None  # into `tenants`
    priority: NDArray[np.int64] | None = None  # lower is served first: 0 high, 1 normal, 2 low
    session: NDArray[np.int64] | None = None  # number of the conversation
    sharing: Sharing | None = None  # what prompts have in common

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def rate_per_s(self) -> float:
        """Mean arrival rate: gaps per second. Infinite when all requests come at one moment."""
        span_s = float(self.arrival_s[-1] - self.arrival_s[0])
        return (len(self) - 1) / span_s if span_s > 0 else float("inf")

    def select(self, rows: NDArray[np.int64]) -> Trace:
        """These requests in this order, with the times they have."""
        names = ("arrival_s", "prompt_tokens", "output_tokens", "tenant_index", "priority", "session")
        arrays = {name: getattr(self, name) for name in names}
        chosen: dict[str, Any] = {name: array[rows] for name, array in arrays.items() if array is not None}
        return replace(self, **chosen, sharing=None if self.sharing is None else self.sharing.select(rows))

    def scaled(self, rate_per_s: float) -> Trace:
        """The same requests, time stretched or compressed so that the mean rate is `rate_per_s`."""
        if not 0 < rate_per_s < float("inf"):
            raise InputError(f"is {rate_per_s!r}", field="rate", expected="a positive number of requests/s")
        if not 0 < self.rate_per_s < float("inf"):
            raise InputError("all requests come at one moment, so there is no rate to scale", field="rate")
        return replace(self, arrival_s=self.arrival_s * (self.rate_per_s / rate_per_s))

    def busiest(self, seconds: float) -> Trace:
        """The window of this length that holds the most work (prompt and output tokens), moved to start at 0.

        The earliest among equals. Windows start at an arrival and exclude their end. A shorter trace is kept whole.
        """
        if not seconds > 0:
            raise InputError(f"is {seconds!r}", field="seconds", expected="a positive number")
        if len(self) == 0:
            return self
        work = np.concatenate(([0], np.cumsum(self.prompt_tokens + self.output_tokens)))
        ends = np.searchsorted(self.arrival_s, self.arrival_s + seconds, side="left")
        starts = np.arange(len(self))
        start = int(np.argmax(work[ends] - work[starts]))
        window = self.select(np.arange(start, int(ends[start])))
        return replace(
            window,
            arrival_s=window.arrival_s - self.arrival_s[start],
            start_s=self.start_s + float(self.arrival_s[start]),
        )


def read_trace(path: str | Path, format: TraceFormat = "csv") -> Trace:
    """Read a trace file, plain or gzip.

    Formats: `azure` (TIMESTAMP, ContextTokens, GeneratedTokens), `burstgpt` (Timestamp in s, Request tokens, Response
    tokens, perhaps Session ID; failed requests, which have no tokens, are left out), `mooncake` (JSON lines: timestamp
    in ms, input_length, output_length, perhaps hash_ids: one for every 512 prompt tokens), `sharegpt`
    (num_prefill_tokens, num_decode_tokens; no times), `csv` (arrival_s, prompt_tokens, output_tokens; perhaps tenant,
    priority (high, normal, low), session, and prefix with prefix_tokens: rows that name the same prefix begin with the
    same tokens, as many as both of them state).
    Columns may stand in any order, others are ignored.
    Raises `InputError` with the line for anything that is missing, malformed, out of order or out of range.
    """
    path = Path(path)
    if format not in formats.PARSERS:
        raise InputError(
            f"unknown trace format {format!r}",
            field="format",
            expected=" | ".join(formats.PARSERS),
            nearest=nearest_names(format, formats.PARSERS),
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=str(path)) from None
    text = _decode(_unpack(data, path), path)
    columns = formats.PARSERS[format](text, str(path))
    return Trace(
        arrival_s=columns.arrival_s - columns.arrival_s[0],
        prompt_tokens=columns.prompt_tokens,
        output_tokens=columns.output_tokens,
        sha256=hashlib.sha256(data).hexdigest(),
        timed=columns.timed,
        notes=columns.notes,
        tenants=columns.tenants,
        tenant_index=columns.tenant_index,
        priority=columns.priority,
        session=columns.session,
        sharing=columns.sharing,
    )


def _unpack(data: bytes, path: Path) -> bytes:
    """Undo gzip where the bytes say gzip (all members of it); bounded, so that a small file cannot fill memory."""
    if not data.startswith(b"\x1f\x8b"):
        if path.suffix == ".gz" and data:
            raise InputError("is not gzip, as its name says", file=str(path))
        if len(data) > MAX_TRACE_BYTES:
            raise InputError("is too large", file=str(path), expected=f"at most {MAX_TRACE_BYTES} bytes")
        return data
    pieces: list[bytes] = []
    size = 0
    while data:
        member = zlib.decompressobj(wbits=31)
        try:
            piece = member.decompress(data, MAX_TRACE_BYTES - size + 1)
        except zlib.error as error:
            raise InputError(f"is damaged gzip ({error})", file=str(path)) from None
        size += len(piece)
        if size > MAX_TRACE_BYTES:
            raise InputError("is too large", file=str(path), expected=f"at most {MAX_TRACE_BYTES} bytes unpacked")
        if not member.eof:
            raise InputError("is truncated gzip", file=str(path), expected="a complete file")
        pieces.append(piece)
        data = member.unused_data.lstrip(b"\0")
    return b"".join(pieces)


def _decode(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError("is not UTF-8", file=str(path), line=line, expected="UTF-8 text") from None
