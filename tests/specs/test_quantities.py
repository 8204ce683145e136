"""Quantities: exact values, dimensions told apart, messages that teach."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specs import quantities as q
from specs.errors import InputError


@pytest.mark.parametrize(
    ("parse", "written", "value"),
    [
        (q.parse_bytes, "80GB", 80_000_000_000),
        (q.parse_bytes, "80 GB", 80_000_000_000),
        (q.parse_bytes, "1TiB", 2**40),
        (q.parse_bytes, "512MiB", 512 * 2**20),
        (q.parse_bytes, "0.1TB", 100_000_000_000),  # binary floating point would give ...000.00000001
        (q.parse_bytes_per_s, "64GB/s", 64e9),
        (q.parse_bytes_per_s, "400Gb/s", 50e9),
        (q.parse_bytes_per_s, "8Kib/s", 1024),
        (q.parse_seconds, "50ms", 0.05),
        (q.parse_seconds, "1.5s", 1.5),
        (q.parse_seconds, "2min", 120.0),
        (q.parse_seconds, "1h", 3600.0),
        (q.parse_seconds, "5us", 5e-6),
        (q.parse_seconds, "0s", 0.0),
        (q.parse_per_s, "20/s", 20.0),
        (q.parse_per_s, "600/min", 10.0),
        (q.parse_per_s, "7/min", 7 / 60),
        (q.parse_per_s, "2k requests/s", 2000.0),
        (q.parse_tokens, "32Ki", 32768),
        (q.parse_tokens, "2k", 2000),
        (q.parse_tokens, "2.5k", 2500),
        (q.parse_tokens, "1e3", 1000),
        (q.parse_tokens, 4096, 4096),
        (q.parse_tokens, "2k tokens", 2000),
        (q.parse_tokens_per_s, "2000 tokens/s", 2000.0),
        (q.parse_tokens_per_s, "120k tokens/min", 2000.0),
        (q.parse_usd_per_hour, "$2.90/h", 2.9),
        (q.parse_usd_per_hour, "2.90 USD/h", 2.9),
        (q.parse_usd_per_hour, "$0/h", 0.0),
        (q.parse_watts, "600W", 600.0),
        (q.parse_watts, "1.2kW", 1200.0),
        (q.parse_fraction, "85%", 0.85),
        (q.parse_fraction, "0.85", 0.85),
        (q.parse_fraction, 1, 1.0),
        (q.parse_grams_per_kwh, "320 g/kWh", 320.0),
        (q.parse_grams_per_kwh, "0.32 kg/kWh", 320.0),
        (q.parse_per_hour, "0.05/h", 0.05),
        (q.parse_per_hour, "12/d", 0.5),
        (q.parse_time_window, "01:00-05:00", (3600, 18000)),
        (q.parse_time_window, "22:30-24:00", (81000, 86400)),
        (q.parse_time_window, "22:00-02:00", (79200, 7200)),
    ],
)
def test_value(parse, written, value):
    assert parse(written) == value


@pytest.mark.parametrize(
    ("parse", "written", "says"),
    [
        (q.parse_bytes, "80Gb", "an amount of bits, not an amount of memory"),
        (q.parse_bytes, "5s", "a duration, not an amount of memory"),
        (q.parse_bytes, "80", "has no unit"),
        (q.parse_bytes, "1.5B", "not a whole number"),
        (q.parse_bytes_per_s, "64GB", "an amount of memory, not a bandwidth"),
        (q.parse_bytes_per_s, "400Gbps", "did you mean '400Gb/s'"),
        (q.parse_bytes_per_s, "64gb/s", "'64GB/s' or '64Gb/s'"),
        (q.parse_seconds, "50", "has no unit; expected a duration such as 50ms"),
        (q.parse_seconds, "5m", "'5ms' or '5min'"),
        (q.parse_seconds, "20/s", "a rate, not a duration"),
        (q.parse_per_s, "20", "has no unit; expected a rate such as 20/s"),
        (q.parse_per_s, "0/s", "must be more than 0"),
        (q.parse_tokens, "32KiB", "an amount of memory, not a number of tokens"),
        (q.parse_tokens, "2.0001k", "not a whole number"),
        (q.parse_tokens, "1,000", "has a comma"),
        (q.parse_tokens, "010", "begins with a zero"),
        (q.parse_usd_per_hour, "2.90/h", "lacks the '$'"),
        (q.parse_usd_per_hour, "$2.90", "'$2.90' has no unit"),
        (q.parse_seconds, "$5", "a price, not a duration"),
        (q.parse_fraction, "85", "more than 100%; expected a share such as 85% or 0.85; did you mean '85%'"),
        (q.parse_fraction, "101%", "more than 100%"),
        (q.parse_tokens, "1e99", "absurdly large"),
        (q.parse_per_s, "1e400/s", "out of any range"),
        (q.parse_per_s, "1e-400/s", "out of any range"),
        (q.parse_tokens, "1e400", "out of any range"),
        (q.parse_per_s, "1_000/s", "nothing between thousands"),
        (q.parse_bytes, "9" * 31 + "GB", "out of any range"),
        (q.parse_bytes, "9" * 999, "too long"),
        (q.parse_seconds, "1e-50ms", "absurdly small"),
        (q.parse_tokens, "", "is empty"),
        (q.parse_tokens, "many", "is not a number of tokens"),
        (q.parse_tokens, True, "is not a quantity"),
        (q.parse_time_window, "1-5", "not a time window"),
        (q.parse_time_window, "05:00-05:00", "has no length"),
        (q.parse_time_window, "25:00-26:00", "not a time window"),
    ],
)
def test_message(parse, written, says):
    with pytest.raises(InputError) as caught:
        parse(written)
    assert says in str(caught.value)


PARSERS = [
    q.parse_bytes, q.parse_bytes_per_s, q.parse_seconds, q.parse_per_s, q.parse_tokens, q.parse_tokens_per_s,
    q.parse_usd_per_hour, q.parse_watts, q.parse_fraction, q.parse_grams_per_kwh, q.parse_per_hour,
]  # fmt: skip


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize(
    "number", ["nan", "NaN", ".nan", "inf", "-inf", ".inf", "-1", "-0.5", "1e999", "0x10", "\u0661", "--1"]
)
def test_no_dimension_takes_a_number_that_is_not_finite_and_positive(parse, number):
    units = next(d for d, p in zip(q.DIMENSIONS, PARSERS, strict=True) if p is parse)
    for unit in units.units:
        with pytest.raises(InputError):
            parse(f"{units.prefix}{number}{unit}")


def test_a_unit_belongs_to_the_dimension_that_says_so():
    """Every unit of every dimension: parsed by its own, refused by all that do not list it."""
    for dimension in q.DIMENSIONS:
        for unit in dimension.units:
            text = f"{dimension.prefix}1{unit}" if not unit.startswith("USD") else f"1{unit}"
            assert dimension.parse(text) == dimension.units[unit]
            for other in q.DIMENSIONS:
                if unit not in other.units or other.prefix != dimension.prefix:
                    with pytest.raises(InputError):
                        other.parse(text)


@given(st.integers(1, 10**6), st.sampled_from(["B", "kB", "MB", "GB", "KiB", "MiB", "GiB"]))
def test_bytes_are_exact(count, unit):
    scale = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[unit]
    assert q.parse_bytes(f"{count}{unit}") == count * scale


@given(st.decimals(Decimal("0.001"), Decimal(1000), places=3))
def test_milliseconds_and_seconds_agree(value):
    assert q.parse_seconds(f"{value}s") == q.parse_seconds(f"{value * 1000}ms")


@given(st.one_of(st.text(max_size=80), st.from_regex(r"\A[-$+.]?[0-9]{1,40}(e[0-9]{1,5})? ?[a-zA-Z/%]{0,6}\Z")))
def test_any_text_gives_a_sane_number_or_a_short_message(text):
    for parse in (*PARSERS, q.parse_time_window):
        message = ""
        try:
            value = parse(text)
        except InputError as error:
            value, message = 0, str(error)
        assert isinstance(value, tuple) or 0 <= value <= 10**18
        assert len(message) < 600
        assert "\n" not in message
