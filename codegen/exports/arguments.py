"""Argument lists of engines' servers, checked against a table of the engine's own arguments in a stated version.

An argument that the table does not know, or a value that it does not allow, is a fault of the export and stops it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from specs.errors import CapstanError

Value = str | int | float | bool


@dataclass(frozen=True)
class ArgumentSpec:
    """One row of the table of the engine's arguments."""

    name: str
    type: Literal["int", "float", "str", "enum", "flag"]
    source: str
    keeps: str  # what of the plan it keeps, in words
    values: tuple[str, ...] = ()
    minimum: float | None = None
    above: float | None = None  # exclusive lower limit
    maximum: float | None = None
    negatable: bool = False
    default: Value | None = None

    def fault(self, value: Value) -> str | None:
        """What is wrong with `value`, or None."""
        if self.type == "flag":
            if not isinstance(value, bool):
                return "is a flag and takes True or False"
            return None if value or self.negatable else "has no negative form"
        if self.type in ("int", "float"):
            if isinstance(value, bool) or not isinstance(value, int if self.type == "int" else (int, float)):
                return f"must be of type {self.type}"
            if self.minimum is not None and value < self.minimum:
                return f"must be at least {self.minimum:g}"
            if self.above is not None and value <= self.above:
                return f"must be above {self.above:g}"
            if self.maximum is not None and value > self.maximum:
                return f"must be at most {self.maximum:g}"
            return None
        if not isinstance(value, str) or not value:
            return "must be text"
        if self.type == "enum" and value not in self.values:
            return f"must be one of {', '.join(self.values)}"
        return None


@dataclass(frozen=True)
class ArgumentTable:
    """The arguments of one engine in one version, and the container images of that version by device vendor."""

    engine: str
    version: str
    command: tuple[str, ...]  # words that start the server
    probe: str  # shell command that succeeds where the engine is installed
    install: str  # what installs it
    model_option: str  # before the model's name; empty: it is the first word
    images: Mapping[str, str]
    sources: Mapping[str, str]
    environment: Mapping[str, str]
    arguments: Mapping[str, ArgumentSpec]


@dataclass(frozen=True)
class EngineArguments:
    """The engine's command, `MODEL OPTIONS`, with its environment. Option names have no dashes in front."""

    model: str
    options: tuple[tuple[str, Value], ...]
    environment: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    engine: str = "vllm"

    def __post_init__(self) -> None:
        check_arguments(self.options, self.engine)

    @property
    def table(self) -> ArgumentTable:
        return engine_table(self.engine)

    def with_options(self, *options: tuple[str, Value]) -> EngineArguments:
        """The same with `options` added at the end; an option is stated once."""
        return replace(self, options=(*self.options, *options))

    def model_words(self) -> list[str]:
        """The model as the command line takes it."""
        option = self.table.model_option
        return [f"--{option}", self.model] if option else [self.model]

    def pairs(self) -> list[list[str]]:
        """One list of words per option, as a command line takes them: ["--port", "8000"], ["--headless"]."""
        return [_words(name, value) for name, value in self.options]

    def to_list(self) -> list[str]:
        """The words after the engine's command."""
        return [*self.model_words(), *(word for words in self.pairs() for word in words)]


def _words(name: str, value: Value) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value)]


@cache
def engine_table(engine: str) -> ArgumentTable:
    """The table of an engine's arguments that ships with the exports."""
    file = Path(__file__).with_name(f"{engine}_arguments.yaml")
    raw: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    arguments = {}
    for name, row in raw["arguments"].items():
        fields = dict(row) | {"values": tuple(row.get("values", ())), "source": raw["source"][row["source"]]}
        arguments[name] = ArgumentSpec(name=name, **fields)
    return ArgumentTable(
        engine=raw["engine"],
        version=str(raw["version"]),
        command=tuple(raw["command"]),
        probe=raw["probe"],
        install=raw["install"],
        model_option=raw["model_option"],
        images=raw["image"],
        sources=raw["source"],
        environment=raw["environment"],
        arguments=arguments,
    )


def check_arguments(options: tuple[tuple[str, Value], ...], engine: str = "vllm") -> None:
    """Refuse what the engine's table does not allow: `CapstanError`, for such a list is a fault of the export."""
    table = engine_table(engine)
    seen = set()
    for name, value in options:
        spec = table.arguments.get(name)
        if spec is None:
            raise CapstanError(f"--{name} is not an argument of {table.engine} {table.version}")
        fault = spec.fault(value)
        if fault:
            raise CapstanError(f"--{name} {value!r}: {fault} ({table.engine} {table.version})")
        if name in seen:
            raise CapstanError(f"--{name} is stated twice")
        seen.add(name)
