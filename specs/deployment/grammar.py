"""Shapes: what may be written in a field. One description reads the YAML and writes the JSON schema for editors.

Here: what a shape is, and the shapes made of others. Single values: `scalars.py`. The declaration itself: `written.py`.

A shape turns a YAML node into a value, or raises `InputError` with file, line and field. While reading, the line of
every field is recorded under its path (`traffic[0].slo.ttft`), so that checks across fields can point at their source.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from specs.errors import InputError, nearest_names
from specs.quantities import shown
from specs.yaml_source import Mapping as MappingNode
from specs.yaml_source import Node, Scalar, Sequence

T = TypeVar("T")

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.-]{1,64}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
NAME_SAYS = "a name of letters, digits, '.', '_' and '-' (at most 63)"


@dataclass(frozen=True)
class Place:
    """Where a value stands. `lines` is shared by all places of a file: path -> line."""

    file: str | None
    path: str
    line: int
    lines: dict[str, int]

    def of(self, key: str, line: int) -> Place:
        """The place of a field inside this one."""
        key = key if _PLAIN_KEY.fullmatch(key) else shown(key)
        return self._at(f"{self.path}.{key}" if self.path else key, line)

    def item(self, index: int, line: int) -> Place:
        return self._at(f"{self.path}[{index}]", line)

    def _at(self, path: str, line: int) -> Place:
        self.lines[path] = line
        return Place(self.file, path, line, self.lines)

    def error(
        self, message: str, expected: str | None = None, nearest: tuple[str, ...] = (), field: str = ""
    ) -> InputError:
        """An error here, or at `field` below here where that was written."""
        path = ".".join(part for part in (self.path, field) if part)
        line = self.lines.get(path, self.line)
        return InputError(message, file=self.file, line=line, field=path or None, expected=expected, nearest=nearest)


class Shape(ABC, Generic[T]):
    """What may be written in one field."""

    says: str  # what was expected, in a few words

    @abstractmethod
    def read(self, node: Node, at: Place) -> T:
        """The value; `InputError` where the node is not of this shape."""

    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """JSON schema of what may be written."""


def text_of(node: Node, at: Place, expected: str) -> str:
    """The text of a scalar; a list, a mapping or nothing is an error."""
    if not isinstance(node, Scalar):
        raise at.error(f"is {'a list' if isinstance(node, Sequence) else 'a mapping'}", expected)
    if node.empty:
        raise at.error("is empty", expected)
    return node.text.strip()


def mapping_of(node: Node, at: Place, expected: str) -> MappingNode:
    if isinstance(node, MappingNode):
        if not node.entries:
            raise at.error("is empty", expected)
        return node
    if isinstance(node, Sequence):
        raise at.error("is a list", expected)
    raise at.error("is empty" if node.empty else f"is {shown(node.text)}", expected)


def checked_name(text: str, at: Place) -> str:
    """What the user calls something: it ends up in file names, labels and tables."""
    if not NAME.fullmatch(text):
        raise at.error(f"{shown(text)} is not a usable name", NAME_SAYS)
    return text


@dataclass(frozen=True)
class ListOf(Shape[tuple[T, ...]]):
    """One or more items."""

    item: Shape[T]

    @property
    def says(self) -> str:  # type: ignore[override]
        return f"a list, each item {self.item.says}"

    def read(self, node: Node, at: Place) -> tuple[T, ...]:
        if not isinstance(node, Sequence):
            raise at.error("is not a list", self.says)
        if not node.items:
            raise at.error("is an empty list", self.says)
        return tuple(self.item.read(item, at.item(index, item.line)) for index, item in enumerate(node.items))

    def schema(self) -> dict[str, Any]:
        return {"type": "array", "minItems": 1, "items": self.item.schema()}


@dataclass(frozen=True)
class OneOrMore(Shape[tuple[T, ...]]):
    """A value, or a list of different values."""

    item: Shape[T]

    @property
    def says(self) -> str:  # type: ignore[override]
        return f"{self.item.says}, or a list of them"

    def read(self, node: Node, at: Place) -> tuple[T, ...]:
        if not isinstance(node, Sequence):
            return (self.item.read(node, at),)
        values = ListOf(self.item).read(node, at)
        for index, value in enumerate(values):
            if value in values[:index]:
                raise at.error(f"{shown(value)} stands twice in the list")
        return values

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [self.item.schema(), ListOf(self.item).schema()]}


@dataclass(frozen=True)
class OrAuto(Shape[T | None]):
    """The word `auto` (None: left to the planner), or a value."""

    inner: Shape[T]

    @property
    def says(self) -> str:  # type: ignore[override]
        return f"auto, or {self.inner.says}"

    def read(self, node: Node, at: Place) -> T | None:
        if isinstance(node, Scalar) and node.text == "auto":
            return None
        return self.inner.read(node, at)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"const": "auto"}, self.inner.schema()]}


@dataclass(frozen=True)
class MapOf(Shape[dict[str, T]]):
    """Names chosen by the user, each with a value."""

    value: Shape[T]
    says: str

    def read(self, node: Node, at: Place) -> dict[str, T]:
        node = mapping_of(node, at, self.says)
        values = {}
        for key, child in node.entries.items():
            place = at.of(key, node.key_lines[key])
            values[checked_name(key, place)] = self.value.read(child, place)
        return values

    def schema(self) -> dict[str, Any]:
        names = {"pattern": f"^{NAME.pattern}$"}
        return {"type": "object", "minProperties": 1, "propertyNames": names,
                "additionalProperties": self.value.schema()}  # fmt: skip


@dataclass(frozen=True)
class ByKind(Shape[Any]):
    """A short form (one scalar) beside the full one (a mapping)."""

    short: Shape[Any]
    full: Shape[Any]

    @property
    def says(self) -> str:  # type: ignore[override]
        return f"{self.short.says}, or {self.full.says}"

    def read(self, node: Node, at: Place) -> Any:
        if isinstance(node, Sequence):
            raise at.error("is a list", self.says)
        return (self.full if isinstance(node, MappingNode) else self.short).read(node, at)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [self.short.schema(), self.full.schema()]}


@dataclass(frozen=True)
class Made(Shape[T]):
    """Another shape, and what becomes of its value."""

    inner: Shape[Any]
    make: Callable[[Any, Place], T]

    @property
    def says(self) -> str:  # type: ignore[override]
        return self.inner.says

    def read(self, node: Node, at: Place) -> T:
        return self.make(self.inner.read(node, at), at)

    def schema(self) -> dict[str, Any]:
        return self.inner.schema()


@dataclass(frozen=True)
class Field:
    """One field of a record: its shape, what editors show, the attribute of the document it becomes."""

    shape: Shape[Any]
    doc: str
    attribute: str = ""  # the field's own name where empty
    required: bool = False


@dataclass(frozen=True)
class Record(Shape[Any]):
    """A mapping with known fields, which becomes one record of the document.

    `finish` may fill defaults that depend on other fields, and checks what concerns several of them.
    """

    model: type[BaseModel]
    fields: Mapping[str, Field]
    finish: Callable[[dict[str, Any], Place], None] | None = None

    @property
    def says(self) -> str:  # type: ignore[override]
        return f"a mapping with {', '.join(self.fields)}"

    def read(self, node: Node, at: Place) -> Any:
        node = mapping_of(node, at, self.says)
        values: dict[str, Any] = {}
        for key, child in node.entries.items():
            place = at.of(key, node.key_lines[key])
            field = self.fields.get(key)
            if field is None:
                nearest = nearest_names(key[:80], self.fields)
                raise place.error("unknown field", f"one of {', '.join(self.fields)}", nearest)
            values[field.attribute or key] = field.shape.read(child, place)
        for name, field in self.fields.items():
            if field.required and name not in node.entries:
                raise at.error(f"{name!r} is missing", f"{name}: {field.shape.says}")
        if self.finish is not None:
            self.finish(values, at)
        try:
            return self.model(**values)
        except ValidationError as error:  # the shapes check first; this is the second lock
            first = error.errors()[0]
            raise at.error(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None

    def schema(self) -> dict[str, Any]:
        properties = {name: {"description": field.doc, **field.shape.schema()} for name, field in self.fields.items()}
        schema: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": properties}
        required = [name for name, field in self.fields.items() if field.required]
        return schema | ({"required": required} if required else {})
