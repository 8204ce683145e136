"""Parsers of trace files: text in, checked columns out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specs.errors import InputError, nearest_names
from specs.traffic.columns import Table, numbered, numbered_or_own, ordered, read_csv, seconds, timestamps, tokens
from specs.traffic.prefixes import Chains, Prefixes, Sharing, chained

HASHED_TOKENS = 512  # of one id in a Mooncake trace


@dataclass(frozen=True)
class Columns:
    """One entry per request in each array; None: the file does not say."""

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    timed: bool = True
    notes: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
    tenant_index: NDArray[np.int64] | None = None
    priority: NDArray[np.int64] | None = None
    session: NDArray[np.int64] | None = None
    sharing: Sharing | None = None


def parse_azure(text: str, file: str) -> Columns:
    table = read_csv(text, file, ("TIMESTAMP", "ContextTokens", "GeneratedTokens"))
    arrival_s = timestamps(table.columns["TIMESTAMP"], file, table.lines)
    ordered(arrival_s, file, "TIMESTAMP", table.lines)
    return Columns(arrival_s, table.tokens("ContextTokens"), table.tokens("GeneratedTokens"))


def parse_csv(text: str, file: str) -> Columns:
    """Columns `tenant`, `priority`, `session` and `prefix` with `prefix_tokens` may stand beside the needed three."""
    optional = ("tenant", "priority", "session", "prefix", "prefix_tokens")
    table = read_csv(text, file, ("arrival_s", "prompt_tokens", "output_tokens"), optional)
    arrival_s = table.arrivals("arrival_s")
    prompt_tokens, output_tokens = table.tokens("prompt_tokens"), table.tokens("output_tokens")
    tenants, tenant_index = _tenants(table) if "tenant" in table.columns else ((), None)
    return Columns(
        arrival_s,
        prompt_tokens,
        output_tokens,
        tenants=tenants,
        tenant_index=tenant_index,
        priority=table.priorities("priority") if "priority" in table.columns else None,
        session=numbered_or_own(table.words("session")) if "session" in table.columns else None,
        sharing=_shared(table, prompt_tokens),
    )


def _tenants(table: Table) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    words = table.words("tenant")
    if "" in words:
        raise table.error(words.index(""), "tenant", "is empty", "a tenant in every row, or no such column")
    return numbered(words)


def _shared(table: Table, prompt_tokens: NDArray[np.int64]) -> Chains | None:
    """Prompts that name the same prefix agree in as many tokens as both of them state."""
    stated = [name for name in ("prefix", "prefix_tokens") if name in table.columns]
    if not stated:
        return None
    if len(stated) == 1:
        raise InputError(
            f"has the column {stated[0]!r} alone", file=table.file, line=1, field=stated[0],
            expected="prefix (what is shared) and prefix_tokens (how much of it), or neither",
        )  # fmt: skip
    shared_tokens = np.zeros(len(prompt_tokens), np.int64)
    words = table.words("prefix")
    for row, (word, text) in enumerate(zip(words, table.columns["prefix_tokens"], strict=True)):
        text = text.strip()
        if bool(word) != (text not in ("", "0")):
            raise table.error(row, "prefix_tokens", f"is {text!r} beside prefix {word!r}", "both, or neither")
        if not word:
            continue
        if not text.isascii() or not text.isdigit() or not int(text[:12]) <= prompt_tokens[row]:
            expected = f"a whole number from 1 to prompt_tokens ({prompt_tokens[row]})"
            raise table.error(row, "prefix_tokens", f"is {text[:40]!r}", expected)
        shared_tokens[row] = int(text)
    return Chains(numbered(words)[1], shared_tokens, np.arange(len(words)), prompt_tokens)


def parse_burstgpt(text: str, file: str) -> Columns:
    """Requests without tokens failed when this data set was recorded: they are left out, and a note says how many.

    Its second release adds `Session ID` (empty: a request of its own) and `Elapsed time`, which is not used.
    """
    needed = ("Timestamp", "Request tokens", "Response tokens")
    table = read_csv(text, file, needed, ("Session ID",))
    nothing = {"0", "0.0"}
    pairs = zip(table.columns["Request tokens"], table.columns["Response tokens"], strict=True)
    failed = [row for row, (asked, got) in enumerate(pairs) if asked.strip() in nothing or got.strip() in nothing]
    notes: tuple[str, ...] = ()
    if failed:
        notes = (f"{len(failed)} of {len(table.lines)} requests have no tokens (they failed) and are left out",)
        if len(failed) == len(table.lines):
            raise InputError("holds only requests that failed", file=file, expected="requests with Response tokens")
        table = table.without(failed)
    session = numbered_or_own(table.words("Session ID")) if "Session ID" in table.columns else None
    return Columns(
        table.arrivals("Timestamp"),
        table.tokens("Request tokens"),
        table.tokens("Response tokens"),
        notes=notes,
        session=session,
    )


def parse_sharegpt(text: str, file: str) -> Columns:
    table = read_csv(text, file, ("num_prefill_tokens", "num_decode_tokens"))
    return Columns(
        np.arange(len(table.lines), dtype=np.float64),
        table.tokens("num_prefill_tokens"),
        table.tokens("num_decode_tokens"),
        timed=False,
        notes=("the file holds lengths only: arrival times are drawn",),
    )


def parse_mooncake(text: str, file: str) -> Columns:
    names = ("timestamp", "input_length", "output_length")
    columns: tuple[list[Any], ...] = ([], [], [])
    hashes: list[Any] = []
    lines: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = _json_row(line, file, number)
        for name, column in zip(names, columns, strict=True):
            if name not in row:
                raise InputError(
                    "is missing", file=file, line=number, field=name, nearest=nearest_names(name, map(str, row))
                )
            value = row[name]
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(f"is {value!r}", file=file, line=number, field=name, expected="a number")
            column.append(value)
        hashes.append(row.get("hash_ids"))
        lines.append(number)
    if not lines:
        raise InputError("holds no requests", file=file, expected="one JSON object a line")
    arrival_s = seconds(columns[0], file, "timestamp", lines) / 1000.0
    ordered(arrival_s, file, "timestamp", lines)
    prompt_tokens = tokens(columns[1], file, "input_length", lines)
    return Columns(
        arrival_s,
        prompt_tokens,
        tokens(columns[2], file, "output_length", lines),
        sharing=_hashed(hashes, prompt_tokens, file, lines),
    )


def _json_row(line: str, file: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON ({error})", file=file, line=number, expected="one object a line") from None
    if not isinstance(row, dict):
        raise InputError(f"holds {type(row).__name__}", file=file, line=number, expected="one object a line")
    return row


def _hashed(hashes: list[Any], prompt_tokens: NDArray[np.int64], file: str, lines: list[int]) -> Prefixes | None:
    """Units of `HASHED_TOKENS` tokens. A row without `hash_ids` shares nothing.

    There is an id for a prompt's last, partly filled unit too. In the published trace it is equal only where the whole
    prompt is, and a cache keeps whole blocks only: it is checked and left out.
    """
    if all(ids is None for ids in hashes):
        return None
    numbers: dict[int, int] = {}
    flat: list[int] = []
    for row, (ids, tokens_of) in enumerate(zip(hashes, prompt_tokens.tolist(), strict=True)):
        if ids is None:
            continue
        if not isinstance(ids, list) or not set(map(type, ids)) <= {int}:
            message = "is no list of whole numbers"
            raise InputError(message, file=file, line=lines[row], field="hash_ids", expected="ids such as [0, 14, 15]")
        if len(ids) != -(-tokens_of // HASHED_TOKENS):
            message = f"has {len(ids)} ids for {tokens_of} prompt tokens"
            expected = f"{-(-tokens_of // HASHED_TOKENS)}: one for every {HASHED_TOKENS} tokens, and for the rest"
            raise InputError(message, file=file, line=lines[row], field="hash_ids", expected=expected)
        flat += [numbers.setdefault(unit, len(numbers)) for unit in ids[: tokens_of // HASHED_TOKENS]]
    stated = np.array([ids is not None for ids in hashes])
    lengths = np.where(stated, prompt_tokens // HASHED_TOKENS, 0)
    return chained(HASHED_TOKENS, lengths, np.array(flat, dtype=np.int64))


PARSERS: dict[str, Callable[[str, str], Columns]] = {
    "azure": parse_azure,
    "mooncake": parse_mooncake,
    "burstgpt": parse_burstgpt,
    "sharegpt": parse_sharegpt,
    "csv": parse_csv,
}
