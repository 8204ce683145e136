"""Errors that teach: what is wrong, where it stands, what was expected, what is nearest to it.

Every error that a user can cause derives from `CapstanError` and carries the exit code that the command line
documents: 2 the input is wrong, 3 no plan satisfies the spec, 1 anything unexpected.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class CapstanError(Exception):
    """Base of all errors with a message for people; `exit_code` is what the process ends with."""

    exit_code = 1


@dataclass(eq=False)
class InputError(CapstanError):
    """The input is wrong. One clear message: `file:line: field: message; expected ...; did you mean ...?`"""

    message: str
    file: str | None = None
    line: int | None = None
    field: str | None = None
    expected: str | None = None
    nearest: tuple[str, ...] = ()

    exit_code = 2

    def __str__(self) -> str:
        place = ""
        if self.file:
            place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: "
        text = place + (f"{self.field}: " if self.field else "") + self.message
        if self.expected:
            text += f"; expected {self.expected}"
        if self.nearest:
            text += f"; did you mean {' or '.join(repr(name) for name in self.nearest)}?"
        return text


class NotHonouredError(InputError):
    """A statement that can be declared, but that this version does not honour: refused by name, never ignored."""


@dataclass(eq=False)
class NoPlanError(CapstanError):
    """No plan satisfies the spec: the statements in conflict, and the least change that mends each."""

    message: str
    conflict: tuple[str, ...] = ()
    mends: tuple[str, ...] = ()

    exit_code = 3

    def __str__(self) -> str:
        lines = [self.message]
        if self.conflict:
            lines += ["statements in conflict:", *(f"  - {statement}" for statement in self.conflict)]
        if self.mends:
            lines += ["least change that mends it (any one of):", *(f"  - {mend}" for mend in self.mends)]
        return "\n".join(lines)


def nearest_names(word: str, names: Iterable[str], count: int = 3) -> tuple[str, ...]:
    """The valid names most like `word`, best first (case and `_`/`-` do not matter)."""

    def normal(text: str) -> str:
        return text.lower().replace("_", "-")

    by_normal = {normal(name): name for name in names}
    matches = difflib.get_close_matches(normal(word), list(by_normal), n=count, cutoff=0.5)
    return tuple(by_normal[match] for match in matches)
