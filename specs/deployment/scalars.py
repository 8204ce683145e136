"""Shapes of single values: quantities, counts, names, words; at the end, the quantities that declarations use."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from specs import quantities as q
from specs.deployment.grammar import NAME, NAME_SAYS, Made, Place, Shape, checked_name, text_of
from specs.document import DType
from specs.errors import InputError, nearest_names
from specs.quantities import Dimension, shown
from specs.yaml_source import Node

T = TypeVar("T")


@dataclass(frozen=True)
class Quantity(Shape[T]):
    """A number with its unit."""

    dimension: Dimension
    parse: Callable[[str], T]
    positive: bool = False  # refuse 0 where the dimension allows it

    @property
    def says(self) -> str:  # type: ignore[override]
        return f"{self.dimension.name} such as {self.dimension.example}"

    def read(self, node: Node, at: Place) -> T:
        text = text_of(node, at, self.says)
        try:
            value = self.parse(text)
        except InputError as error:
            raise at.error(error.message, error.expected, error.nearest) from None
        if self.positive and value == 0:
            raise at.error(f"{shown(text)} is zero; it must be more than 0", self.says)
        return value

    def schema(self) -> dict[str, Any]:
        return self.dimension.schema()


@dataclass(frozen=True)
class Parsed(Shape[T]):
    """Text read by a function that raises `InputError`."""

    says: str
    parse: Callable[[str], T]
    pattern: str

    def read(self, node: Node, at: Place) -> T:
        try:
            return self.parse(text_of(node, at, self.says))
        except InputError as error:
            raise at.error(error.message, error.expected or self.says, error.nearest) from None

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": self.pattern}


@dataclass(frozen=True)
class Count(Shape[int]):
    """A whole number from `low` to `high`."""

    low: int = 1
    high: int = 1_000_000

    @property
    def says(self) -> str:  # type: ignore[override]
        return f"a whole number from {self.low} to {self.high:,}"

    def read(self, node: Node, at: Place) -> int:
        text = text_of(node, at, self.says)
        if not re.fullmatch(r"-?(?:0|[1-9][0-9]*)", text, re.ASCII):
            raise at.error(f"{shown(text)} is not a whole number", self.says)
        value = float(text)  # of any number of digits, which int() is not
        if not self.low <= value <= self.high:
            raise at.error(f"{shown(text)} is {'too small' if value < self.low else 'absurdly large'}", self.says)
        return int(text)

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}


@dataclass(frozen=True)
class Real(Shape[float]):
    """A plain number from `low` to `high`."""

    low: float
    high: float

    @property
    def says(self) -> str:  # type: ignore[override]
        return f"a number from {self.low:g} to {self.high:g}"

    def read(self, node: Node, at: Place) -> float:
        text = text_of(node, at, self.says)
        if not re.fullmatch(r"-?[0-9]{1,20}(?:\.[0-9]{1,20})?(?:[eE][+-]?[0-9]{1,2})?", text, re.ASCII):
            raise at.error(f"{shown(text)} is not a plain finite number", self.says)
        value = float(text)
        if not self.low <= value <= self.high:
            raise at.error(f"{shown(text)} is out of range", self.says)
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "number", "minimum": self.low, "maximum": self.high}


@dataclass(frozen=True)
class Flag(Shape[bool]):
    says: str = "true or false"

    def read(self, node: Node, at: Place) -> bool:
        text = text_of(node, at, self.says)
        if text not in ("true", "false"):
            raise at.error(f"{shown(text)} is neither true nor false", self.says)
        return text == "true"

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Text(Shape[str]):
    """One line of text, such as a path."""

    says: str
    longest: int = 1024

    def read(self, node: Node, at: Place) -> str:
        text = text_of(node, at, self.says)
        if not text or len(text) > self.longest or not text.isprintable():
            raise at.error(f"{shown(text)} is not {self.says}", self.says)
        return text

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1, "maxLength": self.longest}


@dataclass(frozen=True)
class Name(Shape[str]):
    """What the user calls something: it ends up in file names, labels and tables."""

    says: str = NAME_SAYS

    def read(self, node: Node, at: Place) -> str:
        return checked_name(text_of(node, at, self.says), at)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^{NAME.pattern}$"}


@dataclass(frozen=True)
class OneOf(Shape[str]):
    """One of a few words; `aliases` are other spellings."""

    words: tuple[str, ...]
    aliases: Mapping[str, str] | None = None

    @property
    def says(self) -> str:  # type: ignore[override]
        return f"one of {', '.join(self.words)}"

    def read(self, node: Node, at: Place) -> str:
        text = text_of(node, at, self.says)
        word = (self.aliases or {}).get(text, text)
        if word not in self.words:
            raise at.error(f"unknown value {shown(text)}", self.says, nearest_names(text[:80], self.words))
        return word

    def schema(self) -> dict[str, Any]:
        return {"enum": [*self.words, *(self.aliases or {})]}


BYTES = Quantity(q.BYTES, q.parse_bytes)
BANDWIDTH = Quantity(q.BYTES_PER_S, q.parse_bytes_per_s)
DURATION = Quantity(q.SECONDS, q.parse_seconds)
LIMIT = Quantity(q.SECONDS, q.parse_seconds, positive=True)
RATE = Quantity(q.PER_S, q.parse_per_s)
TOKENS = Quantity(q.TOKENS, q.parse_tokens)
PRICE = Quantity(q.USD_PER_HOUR, q.parse_usd_per_hour)
POWER = Quantity(q.WATTS, q.parse_watts)
SHARE = Quantity(q.FRACTION, q.parse_fraction)
POSITIVE_SHARE = Quantity(q.FRACTION, q.parse_fraction, positive=True)
DTYPE = Made(OneOf(tuple(dtype.value for dtype in DType)), lambda word, at: DType(word))
