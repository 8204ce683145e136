"""Quantities as people write them (`80GB`, `400Gb/s`, `50ms`, `$2.90/h`), parsed to SI numbers.

SI prefixes are decimal (`k` = 1000), `Ki Mi Gi` binary; `Gb/s` counts bits, `GB/s` bytes. A quantity of the wrong
dimension, without the unit that its dimension needs, negative, not finite or absurdly large is an `InputError`.
Arithmetic is decimal, so `0.1TB` is exactly 100,000,000,000 bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from specs.errors import InputError, nearest_names

NUMBER = r"(?:(?:0|[1-9][0-9]{0,29})(?:\.[0-9]{1,30})?(?:[eE][+-]?[0-9]{1,2})?)"
_QUANTITY = re.compile(rf"(?P<number>{NUMBER})\s*(?P<unit>\D[^\n]*)?", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?\.?(nan|inf|infinity)\b.*", re.IGNORECASE)
_LONGEST = 64

Written = str | int | float


def shown(value: object) -> str:
    """`value` as it stands in a message: quoted, on one line, cut when long."""
    text = value if isinstance(value, str) else str(value)
    return repr(text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "...")


@dataclass(frozen=True)
class Dimension:
    """One kind of quantity: its units in multiples of the base unit, and the range that makes sense."""

    name: str  # with its article, as in messages: "a duration"
    units: Mapping[str, Decimal]  # "" is the plain number, where that is allowed
    example: str
    high: Decimal
    low: Decimal = Decimal(0)
    zero: bool = False  # 0 is allowed
    whole: bool = False  # the base unit does not divide: bytes, tokens
    prefix: str = ""  # what may stand before the number: "$"
    base: str = ""  # the base unit, as messages about the range call it

    def parse(self, written: Written) -> Decimal:
        """The quantity in base units. `InputError` (without file and field) says what is wrong and what is right."""
        text = self._text(written)
        body = text
        if self.prefix and body.startswith(self.prefix):
            body = body[len(self.prefix) :].lstrip()
        elif body[:1] == "$":
            raise self._wrong_unit(body[1:].lstrip(), "$", text)
        match = _QUANTITY.fullmatch(body)
        if match is None:
            raise self._not_a_number(text, body)
        unit = " ".join((match["unit"] or "").split())
        if self.prefix and body == text and unit in self.units and not unit.startswith("USD"):
            raise self._error(f"{shown(text)} lacks the {self.prefix!r}", (self.prefix + text,))
        if unit not in self.units:
            raise self._wrong_unit(match["number"], unit, text)
        return self._in_range(Decimal(match["number"]) * self.units[unit], text)

    def schema(self) -> dict[str, Any]:
        """JSON schema of what may be written, for editors."""
        ordered = sorted((unit for unit in self.units if unit), key=lambda unit: (-len(unit), unit))
        units = "|".join(re.escape(unit).replace(r"\ ", r"\s*") for unit in ordered)
        prefix = re.escape(self.prefix) + "?" if self.prefix else ""
        optional = "?" if "" in self.units else ""
        written: dict[str, Any] = {"type": "string", "pattern": rf"^\s*{prefix}\s*{NUMBER}\s*(?:{units}){optional}\s*$"}
        written["examples"] = [self.example]
        if "" not in self.units:
            return written
        plain = {"type": "integer" if self.whole else "number", "minimum": 0, "maximum": float(self.high)}
        return {"anyOf": [plain, written]}

    def _text(self, written: Written) -> str:
        if isinstance(written, bool) or not isinstance(written, str | int | float):
            raise self._error(f"{shown(written)} is not a quantity")
        text = (written if isinstance(written, str) else repr(written)).strip()
        if not text:
            raise self._error("is empty")
        if len(text) > _LONGEST:
            raise self._error(f"{shown(text)} is too long for a quantity")
        if _NOT_FINITE.fullmatch(text):
            raise self._error(f"{shown(text)} is not a finite number")
        return text

    def _not_a_number(self, text: str, body: str) -> InputError:
        if re.match(r"-\s*\$?\s*[0-9.]", body) or re.match(r"-\s*\$?\s*[0-9.]", text):
            return self._error(f"{shown(text)} is negative")
        if re.match(r"0[0-9]", body):
            return self._error(f"{shown(text)} begins with a zero")
        if re.match(r"[0-9]{31}", body):
            return self._error(f"{shown(text)} is out of any range that makes sense")
        return self._error(f"{shown(text)} is not {self.name}")

    def _wrong_unit(self, number: str, unit: str, text: str) -> InputError:
        if not unit:
            return self._error(f"{shown(text)} has no unit")
        if re.match(r"[eE][+-]?[0-9]{3}", unit):
            return self._error(f"{shown(text)} is out of any range that makes sense")
        if re.match(r"[_'][0-9]", unit):
            return self._error(f"{shown(text)} has a {unit[0]!r}; write nothing between thousands")
        if re.match(r",[0-9]", unit):
            return self._error(f"{shown(text)} has a comma; write a point for decimals, and nothing between thousands")
        for other in (*DIMENSIONS, _BITS):
            if other is not self and (unit in other.units or (unit == "$" and other.prefix == "$")):
                return self._error(f"{shown(text)} is {other.name}, not {self.name}")
        alike = tuple(name for name in self.units if name and name.lower() == unit.lower())
        alike = alike or nearest_names(unit[:_LONGEST], (name for name in self.units if name), count=2)
        return self._error(f"unknown unit {shown(unit)}", tuple(number + name for name in alike))

    def _in_range(self, value: Decimal, text: str) -> Decimal:
        if value == 0 and not self.zero:
            raise self._error(f"{shown(text)} is zero; it must be more than 0")
        if value > self.high and "%" in self.units:
            nearest = (f"{text}%",) if "%" not in text and value <= 100 else ()
            raise self._error(f"{shown(text)} is more than 100%", nearest)
        if value > self.high:
            raise self._error(f"{shown(text)} is absurdly large", limit=f"at most {self.high:.6g} {self.base}")
        if value and value < self.low:
            raise self._error(f"{shown(text)} is absurdly small")
        if self.whole and value != value.to_integral_value():
            raise self._error(f"{shown(text)} is not a whole number")
        return value

    def _error(self, message: str, nearest: tuple[str, ...] = (), limit: str | None = None) -> InputError:
        expected = f"{self.name} such as {self.example}" + (f", {limit}" if limit else "")
        return InputError(message, expected=expected, nearest=nearest)


def _prefixed(unit: str, prefixes: str, scale: Decimal = Decimal(1)) -> dict[str, Decimal]:
    """`unit` under SI prefixes (`k M G T P`, `K` as people write KB) and binary ones (`Ki` ...)."""
    powers = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
    units = {prefix + unit: scale * Decimal(1000) ** power for prefix, power in powers.items() if prefix in prefixes}
    binary = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4}
    return units | {p + unit: scale * Decimal(1024) ** power for p, power in binary.items() if p[0] in prefixes}


_PER = {"s": Decimal(1), "min": 1 / Decimal(60), "h": 1 / Decimal(3600), "d": 1 / Decimal(86400)}
_TIMES = {"s": "1", "ms": "1e-3", "us": "1e-6", "µs": "1e-6", "ns": "1e-9", "min": "60", "h": "3600", "d": "86400"}
_COUNTED = {"": 1, "k": 1000, "M": 10**6, "Ki": 1024, "Mi": 1024**2}

BYTES = Dimension(
    "an amount of memory", _prefixed("B", "kKMGTP"), "80GB or 1TiB", Decimal("1e18"), whole=True, base="bytes"
)
BYTES_PER_S = Dimension(
    "a bandwidth",
    _prefixed("B/s", "kKMGTP") | _prefixed("b/s", "kKMGTP", 1 / Decimal(8)),
    "64GB/s (bytes) or 400Gb/s (bits)",
    Decimal("1e16"),
    base="bytes/s",
)
SECONDS = Dimension(
    "a duration",
    {unit: Decimal(scale) for unit, scale in _TIMES.items()},
    "50ms or 1.5s",
    Decimal("1e8"),
    low=Decimal("1e-12"),
    zero=True,
    base="seconds",
)
PER_S = Dimension(
    "a rate",
    {f"{prefix} {word}/{unit}".strip().replace(" /", "/"): scale * times for unit, scale in _PER.items()
     for prefix, times in (("", 1), ("k", 1000)) for word in ("", "requests")},
    "20/s or 600/min",
    Decimal("1e7"),
    low=Decimal("1e-9"),
    base="per second",
)  # fmt: skip
TOKENS = Dimension(
    "a number of tokens",
    {(prefix + word).strip(): Decimal(scale) for prefix, scale in _COUNTED.items() for word in ("", " tokens")},
    "2000, 2k or 32Ki",
    Decimal("1e9"),
    whole=True,
    base="tokens",
)
TOKENS_PER_S = Dimension(
    "a token rate",
    {f"{prefix} tokens/{unit}".strip(): scale * Decimal(times) for unit, scale in _PER.items()
     for prefix, times in _COUNTED.items()},
    "2000 tokens/s",
    Decimal("1e12"),
    low=Decimal("1e-9"),
    base="tokens/s",
)  # fmt: skip
USD_PER_HOUR = Dimension(
    "a price",
    {"/h": Decimal(1), "USD/h": Decimal(1)},
    "$2.90/h",
    Decimal("1e7"),
    zero=True,
    prefix="$",
    base="dollars per hour",
)
USD = Dimension(
    "an amount of money",
    {"": Decimal(1), "USD": Decimal(1)},
    "$0.50",
    Decimal("1e9"),
    zero=True,
    prefix="$",
    base="dollars",
)
WATTS = Dimension(
    "a power", {"W": Decimal(1), "kW": Decimal(1000), "MW": Decimal(10**6)}, "600W", Decimal("1e10"), base="watts"
)
FRACTION = Dimension("a share", {"": Decimal(1), "%": Decimal("0.01")}, "85% or 0.85", Decimal(1), zero=True)
GRAMS_PER_KWH = Dimension(
    "a carbon intensity",
    {"g/kWh": Decimal(1), "kg/kWh": Decimal(1000)},
    "320 g/kWh",
    Decimal(10**4),
    zero=True,
    base="g/kWh",
)
PER_HOUR = Dimension(
    "a number of interruptions per hour",
    {"/h": Decimal(1), "/min": Decimal(60), "/d": 1 / Decimal(24)},
    "0.05/h",
    Decimal(3600),
    zero=True,
    base="per hour",
)

DIMENSIONS = (
    BYTES, BYTES_PER_S, SECONDS, PER_S, TOKENS, TOKENS_PER_S, USD_PER_HOUR, WATTS, FRACTION, GRAMS_PER_KWH, PER_HOUR,
)  # fmt: skip
_BITS = Dimension("an amount of bits", _prefixed("b", "kKMGTP"), "8Gb", Decimal("1e18"))  # only to name the mistake

_WINDOW = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])\s*-\s*(?:([01][0-9]|2[0-3]):([0-5][0-9])|(24):(00))", re.ASCII)


def parse_bytes(written: Written) -> int:
    """Bytes: `80GB` = 80e9, `1TiB` = 2**40. Bits (`80Gb`) are refused."""
    return int(BYTES.parse(written))


def parse_bytes_per_s(written: Written) -> float:
    """Bytes per second: `64GB/s` = 64e9, `400Gb/s` = 50e9."""
    return float(BYTES_PER_S.parse(written))


def parse_seconds(written: Written) -> float:
    """Seconds: `50ms`, `1.5s`, `2min`, `1h`, `5us`."""
    return float(SECONDS.parse(written))


def parse_per_s(written: Written) -> float:
    """Events per second: `20/s`, `600/min` = 10."""
    return float(PER_S.parse(written))


def parse_tokens(written: Written) -> int:
    """Tokens: `2000`, `2k` = 2000, `32Ki` = 32768."""
    return int(TOKENS.parse(written))


def parse_tokens_per_s(written: Written) -> float:
    """Tokens per second: `2000 tokens/s`."""
    return float(TOKENS_PER_S.parse(written))


def parse_usd(written: Written) -> float:
    """US dollars: `$0.50` or `0.50 USD`."""
    return float(USD.parse(written))


def parse_usd_per_hour(written: Written) -> float:
    """US dollars per hour: `$2.90/h` or `2.90 USD/h`."""
    return float(USD_PER_HOUR.parse(written))


def parse_watts(written: Written) -> float:
    """Watts: `600W`, `1.2kW`."""
    return float(WATTS.parse(written))


def parse_fraction(written: Written) -> float:
    """A share from 0 to 1: `85%` or `0.85`."""
    return float(FRACTION.parse(written))


def parse_grams_per_kwh(written: Written) -> float:
    """Grams of CO2 per kilowatt-hour: `320 g/kWh`."""
    return float(GRAMS_PER_KWH.parse(written))


def parse_per_hour(written: Written) -> float:
    """Events per hour: `0.05/h`."""
    return float(PER_HOUR.parse(written))


def parse_time_window(written: Written) -> tuple[int, int]:
    """`01:00-05:00` as (start, end) in seconds after midnight; an end before the start passes midnight."""
    expected = "a part of the day such as 01:00-05:00"
    match = _WINDOW.fullmatch(written.strip()) if isinstance(written, str) else None
    if match is None:
        raise InputError(f"{shown(written)} is not a time window", expected=expected)
    hours, minutes, end_hours, end_minutes = (int(part) for part in match.groups() if part is not None)
    start_s, end_s = (hours * 60 + minutes) * 60, (end_hours * 60 + end_minutes) * 60
    if start_s == end_s:
        raise InputError(f"{shown(written)} has no length", expected=expected)
    return start_s, end_s
