"""YAML with the traps taken out: a small tree of nodes that know their lines.

Every scalar stays the text that was written; what it means is decided by the field that reads it. So `on`, `1e3`
and `01:00` are never turned into something else (YAML 1.1 would). Built from parser events, not by constructing
objects: tags are refused, and depth, size, aliases and duplicate keys are checked while reading.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from specs.errors import InputError
from specs.quantities import shown

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_NODES = 50_000  # after expansion of aliases; the largest Hugging Face config.json has under 10,000

_INTEGER = re.compile(r"[+-]?(?:0|[1-9][0-9]{0,30})", re.ASCII)
_REAL = re.compile(r"[+-]?(?:0|[1-9][0-9]{0,30})(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?\.(?:inf|nan)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Scalar:
    """Text as written. `plain` is False where it stood in quotes or in a block."""

    line: int
    text: str
    plain: bool
    size: int = 1

    @property
    def empty(self) -> bool:
        return self.plain and self.text in ("", "~", "null")


@dataclass(frozen=True, slots=True)
class Sequence:
    line: int
    items: tuple[Node, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Mapping:
    """Keys in the order written; `key_lines` says where each stands."""

    line: int
    entries: dict[str, Node]
    key_lines: dict[str, int]
    size: int


Node = Scalar | Sequence | Mapping


def read_yaml(path: str | Path) -> Mapping:
    """Read one YAML mapping from a file (UTF-8, at most 1 MB). `InputError` with file and line otherwise."""
    path = Path(path)
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot be read ({reason})", file=str(path), expected="a YAML file") from None
    return parse_yaml(data, str(path))


def parse_yaml(source: str | bytes, file: str | None = None) -> Mapping:
    """The same from text or bytes; `file` is what messages call it."""
    text = _decoded(source, file)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml: 20 times faster
    try:
        return _Builder(yaml.parse(text, Loader=loader), file).document()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "syntax"
        line = mark.line + 1 if mark is not None else None
        raise InputError(f"is not YAML ({' '.join(str(problem).split())})", file=file, line=line) from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"is not YAML ({' '.join(str(error).split())[:200]})", file=file) from None


def _decoded(source: str | bytes, file: str | None) -> str:
    if isinstance(source, str):
        source = source.encode("utf-8", errors="surrogatepass")
    if len(source) > MAX_BYTES:
        raise InputError(f"is larger than {MAX_BYTES:,} bytes", file=file, expected="a spec of a few kilobytes")
    try:
        text = source.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = source.count(b"\n", 0, error.start) + 1
        message = f"is not UTF-8 text (byte 0x{source[error.start]:02x})"
        raise InputError(message, file=file, line=line, expected="a YAML file in UTF-8") from None
    if not text.strip():
        raise InputError("is empty", file=file, expected="a YAML mapping")
    return text


class _Builder:
    """Parser events -> nodes, refusing on the way what no declaration needs."""

    def __init__(self, events: Iterator[Any], file: str | None) -> None:
        self._events = events
        self._file = file
        self._anchors: dict[str, Node | None] = {}  # None while the anchored node is still open
        self._nodes = 0

    def document(self) -> Mapping:
        root: Node | None = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent) and root is not None:
                raise self._error("holds more than one YAML document", event, expected="one")
            if isinstance(event, yaml.NodeEvent):
                root = self._node(event, depth=1)
        if root is None or (isinstance(root, Scalar) and root.empty):
            raise InputError("is empty", file=self._file, expected="a YAML mapping")
        if not isinstance(root, Mapping):
            what = "a list" if isinstance(root, Sequence) else f"the text {shown(root.text)}"
            raise InputError(f"holds {what}", file=self._file, line=root.line, expected="a YAML mapping")
        return root

    def _node(self, event: Any, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self._error(f"is nested deeper than {MAX_DEPTH} levels", event)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if event.tag is not None and event.tag != "!":
            raise self._error(f"has the tag {shown(event.tag)}; tags are not allowed", event)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        self._count(1, event)
        line = event.start_mark.line + 1
        node: Node
        if isinstance(event, yaml.ScalarEvent):
            node = Scalar(line, event.value, plain=event.style in (None, ""))
        elif isinstance(event, yaml.SequenceStartEvent):
            items = tuple(self._children(yaml.SequenceEndEvent, depth))
            node = Sequence(line, items, 1 + sum(item.size for item in items))
        else:
            node = self._mapping(line, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _children(self, end: type[Any], depth: int) -> Iterator[Node]:
        for event in self._events:
            if isinstance(event, end):
                return
            yield self._node(event, depth + 1)

    def _mapping(self, line: int, depth: int) -> Mapping:
        entries: dict[str, Node] = {}
        key_lines: dict[str, int] = {}
        key: Scalar | None = None
        for node in self._children(yaml.MappingEndEvent, depth):
            if key is not None:
                entries[key.text] = node
                key = None
                continue
            if not isinstance(node, Scalar):
                raise InputError("a key is not plain text", file=self._file, line=node.line, expected="a field name")
            if node.plain and node.text == "<<":
                raise InputError("merge keys (<<) are not allowed", file=self._file, line=node.line)
            if node.text in entries:
                first = key_lines[node.text]
                message = f"the key {shown(node.text)} stands twice (first on line {first})"
                raise InputError(message, file=self._file, line=node.line)
            key = node
            key_lines[node.text] = node.line
        return Mapping(line, entries, key_lines, 1 + sum(1 + node.size for node in entries.values()))

    def _alias(self, event: Any) -> Node:
        if event.anchor not in self._anchors:
            raise self._error(f"the alias *{event.anchor[:40]} refers to nothing", event)
        node = self._anchors[event.anchor]
        if node is None:
            raise self._error(f"the alias *{event.anchor[:40]} refers to itself", event)
        self._count(node.size, event)
        return node

    def _count(self, nodes: int, event: Any) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise self._error(f"holds more than {MAX_NODES:,} values, aliases expanded", event)

    def _error(self, message: str, event: Any, expected: str | None = None) -> InputError:
        return InputError(message, file=self._file, line=event.start_mark.line + 1, expected=expected)


def to_plain(node: Node, file: str | None = None) -> Any:
    """JSON-like values of a subtree (inline model configs). Numbers as in JSON, `true`/`false`, `null`; else text.

    `InputError` for NaN and infinity.
    """
    if isinstance(node, Mapping):
        return {key: to_plain(value, file) for key, value in node.entries.items()}
    if isinstance(node, Sequence):
        return [to_plain(item, file) for item in node.items]
    if not node.plain:
        return node.text
    if node.empty:
        return None
    if node.text in ("true", "false"):
        return node.text == "true"
    if _INTEGER.fullmatch(node.text):
        return int(node.text)
    if _NOT_FINITE.fullmatch(node.text):
        raise InputError(f"{shown(node.text)} is not a finite number", file=file, line=node.line)
    if _REAL.fullmatch(node.text):
        value = float(node.text)
        if value in (float("inf"), float("-inf")):
            raise InputError(f"{shown(node.text)} is out of range", file=file, line=node.line)
        return value
    return node.text
