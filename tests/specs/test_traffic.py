"""Traces and drawn traffic: what good files give, what bad files are told, what distributions promise."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specs.errors import InputError
from specs.traffic import (
    Chains,
    Prefixes,
    Trace,
    constant_arrivals,
    diurnal_arrivals,
    draw_fixed,
    draw_histogram,
    draw_lognormal,
    draw_mean,
    draw_uniform,
    gamma_arrivals,
    joined,
    poisson_arrivals,
    read_histogram,
    read_trace,
)

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 23:59:59.5000000,374,44
2023-11-16 23:59:59.9999999,396,109
2023-11-17 00:00:01.0000000,12,1
"""


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def write(tmp_path: Path, text: str | bytes, name: str = "trace.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def trace(arrivals: list[float], work: list[int]) -> Trace:
    return Trace(np.array(arrivals, float), np.array(work), np.ones(len(work), np.int64), "")


@pytest.mark.parametrize("variant", ["plain", "gzip", "two members", "crlf", "bom", "utc", "columns moved"])
def test_azure(tmp_path: Path, variant: str) -> None:
    data = AZURE.encode()
    if variant == "gzip":
        data = gzip.compress(data)
    elif variant == "two members":
        data = gzip.compress(data[:60]) + gzip.compress(data[60:])
    elif variant == "crlf":
        data = data.replace(b"\n", b"\r\n")
    elif variant == "bom":
        data = b"\xef\xbb\xbf" + data
    elif variant == "utc":
        data = data.replace(b"00,", b"00+00:00,").replace(b"99,", b"99+00:00,")
    elif variant == "columns moved":
        rows = [line.split(",") for line in AZURE.splitlines()]
        data = "\n".join(",".join([row[2], "x", row[0], row[1]]) for row in rows).encode()
    path = write(tmp_path, data, "trace.csv.gz" if data[:2] == b"\x1f\x8b" else "trace.csv")
    result = read_trace(path, "azure")
    assert result.arrival_s.tolist() == [0.0, 0.4999999, 1.5]
    assert result.prompt_tokens.tolist() == [374, 396, 12]
    assert result.output_tokens.tolist() == [44, 109, 1]
    assert result.sha256 == hashlib.sha256(data).hexdigest()


def mooncake(*rows: tuple[int, list[int] | None], name: str = "hash_ids") -> str:
    """Rows of (prompt tokens, hash ids), a second apart."""
    documents = [
        {"timestamp": 1000 * number, "input_length": tokens, "output_length": 2} | ({} if ids is None else {name: ids})
        for number, (tokens, ids) in enumerate(rows)
    ]
    return "".join(json.dumps(document) + "\n" for document in documents)


def test_mooncake_and_sharegpt_and_csv(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 1000, "input_length": 7, "output_length": 2},
        {"timestamp": 1250, "input_length": 9, "output_length": 3},
    ]
    text = "\n".join(json.dumps(row) for row in rows)
    result = read_trace(write(tmp_path, gzip.compress(text.encode()), "trace.jsonl.gz"), "mooncake")
    assert result.arrival_s.tolist() == [0.0, 0.25]
    assert result.prompt_tokens.tolist() == [7, 9]
    assert result.sharing is None
    share = read_trace(write(tmp_path, "num_prefill_tokens,num_decode_tokens,x\n5,6,7\n8,9,1\n"), "sharegpt")
    assert (share.timed, share.prompt_tokens.tolist(), share.output_tokens.tolist()) == (False, [5, 8], [6, 9])
    plain = read_trace(write(tmp_path, "arrival_s,prompt_tokens,output_tokens\n0.5,3,4\n\n0.75,5,6\n"), "csv")
    assert plain.arrival_s.tolist() == [0.0, 0.25]
    assert (plain.tenant_index, plain.priority, plain.session, plain.sharing) == (None, None, None, None)


def test_mooncake_keeps_the_hashes_of_whole_units(tmp_path: Path) -> None:
    huge = 2**70
    text = mooncake(
        (1024, [5, huge]), (1025, [5, huge, 9]), (1536, [5, 7, huge]), (600, None), (100, [5]), (1024, [8, huge])
    )
    result = read_trace(write(tmp_path, text), "mooncake")
    assert isinstance(result.sharing, Prefixes)
    one, two, three, none, short, other = (result.sharing.of(request) for request in range(6))
    assert result.sharing.unit_tokens == 512
    assert one == two
    assert three[0] == one[0]
    assert len({*one, *three, *other}) == 6, "the same id after another unit is another prefix"
    assert none == short == ()
    late = result.busiest(2.5).sharing  # the three requests from 1 s on hold the most work
    assert late is not None
    assert late.units(512).of(0) == two


def test_csv_may_say_who_asks_and_what_is_shared(tmp_path: Path) -> None:
    header = "arrival_s,prompt_tokens,output_tokens,tenant,priority,session,prefix,prefix_tokens\n"
    rows = (
        "0,100,1,blue,high,s1,system,40\n1,100,1,red,,,system,32\n2,50,1,blue,low,s1,,\n9,64,1,blue,normal,,other,64\n"
    )
    result = read_trace(write(tmp_path, header + rows), "csv")
    assert (result.tenants, result.tenant_index.tolist()) == (("blue", "red"), [0, 1, 0, 0])
    assert result.priority.tolist() == [0, 1, 2, 1]
    first, second, third, fourth = result.session.tolist()
    assert first == third
    assert len({first, second, fourth}) == 3
    units = [result.sharing.units(16).of(request) for request in range(4)]
    assert [len(own) for own in units] == [6, 6, 3, 4]  # whole prompts compete for a cache, so all of them have ids
    assert units[0][:2] == units[1][:2]
    assert len({*units[0], *units[1], *units[2], *units[3]}) == 6 + 6 + 3 + 4 - 2
    late = result.busiest(2.5)
    assert (late.start_s, late.tenant_index.tolist(), late.session.tolist()) == (0.0, [0, 1, 0], [first, second, first])
    assert late.sharing.units(16).of(1)[:2] == units[1][:2]


def test_burstgpt(tmp_path: Path) -> None:
    header = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    rows = "5,ChatGPT,472,18,490,Conversation log\n45.5,GPT-4,1087,230,1317,API log\n"
    result = read_trace(write(tmp_path, header + rows), "burstgpt")
    assert result.arrival_s.tolist() == [0.0, 40.5]
    assert result.prompt_tokens.tolist() == [472, 1087]
    assert result.output_tokens.tolist() == [18, 230]
    assert (result.notes, result.session) == ((), None)


def test_burstgpt_leaves_failed_requests_out_and_says_so(tmp_path: Path) -> None:
    header = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    good = "5,a,1.5,ChatGPT,472,18,490,Conversation log\n46,,2,GPT-4,9,3,12,API log\n"
    good += "47,a,2,ChatGPT,8,1,9,Conversation log\n"
    failed = "48,a,2,GPT-4,9,0,9,API log\n49,a,0,GPT-4,0,0,0,API log\n"
    result = read_trace(write(tmp_path, header + good + failed), "burstgpt")
    assert result.output_tokens.tolist() == [18, 3, 1]
    assert result.notes == ("2 of 5 requests have no tokens (they failed) and are left out",)
    first, single, second = result.session.tolist()
    assert first == second != single
    with pytest.raises(InputError, match="only requests that failed"):
        read_trace(write(tmp_path, header + failed), "burstgpt")
    with pytest.raises(InputError, match="Response tokens: is '-1'") as caught:
        read_trace(write(tmp_path, header + failed + good + "50,a,0,GPT-4,1,-1,0,API log\n"), "burstgpt")
    assert caught.value.line == 7


HEADER = "arrival_s,prompt_tokens,output_tokens\n"
OPTIONAL = "arrival_s,prompt_tokens,output_tokens,tenant,priority,prefix,prefix_tokens\n"


@pytest.mark.parametrize(
    ("text", "kind", "line", "message"),
    [
        ("", "csv", None, "is empty"),
        (HEADER, "csv", None, "holds no requests"),
        ("arrival_s,prompt_tokens,out_tokens\n1,2,3\n", "csv", 1, "did you mean 'out_tokens'"),
        ("arrival_s,prompt_tokens,output_tokens,arrival_s\n1,2,3,4\n", "csv", 1, "stands 2 times"),
        (HEADER + "0,1,1\n" + HEADER, "csv", 3, "repeats the header"),
        (HEADER + "0,1,1\n2,1,1\n1,1,1\n", "csv", 4, "comes before the row above"),
        (HEADER + "-1,1,1\n", "csv", 2, "arrival_s: is '-1'"),
        (HEADER + "nan,1,1\n", "csv", 2, "arrival_s: is 'nan'"),
        (HEADER + "inf,1,1\n", "csv", 2, "arrival_s: is 'inf'"),
        (HEADER + "0,nan,1\n", "csv", 2, "prompt_tokens: is 'nan'"),
        (HEADER + "0,1,1\n1,1,0\n", "csv", 3, "output_tokens: is '0'"),
        (HEADER + "0,1.5,1\n", "csv", 2, "a whole number"),
        (HEADER + "0,1,1e99\n", "csv", 2, "output_tokens: is '1e99'"),
        (HEADER + "0,1,99999999999999999999999\n", "csv", 2, "output_tokens: is '9999"),
        (HEADER + "0,1,1\n0,1\n", "csv", 3, "has 2 fields"),
        (AZURE + "yesterday,1,1\n", "azure", 5, "TIMESTAMP: is 'yesterday'"),
        (AZURE + "NaT,1,1\n", "azure", 5, "TIMESTAMP: is 'NaT'"),
        (AZURE + "2023-11-16 00:00:00,1,1\n", "azure", 5, "comes before"),
        (AZURE + ",1,1\n", "azure", 5, "TIMESTAMP: is ''"),
        ('{"timestamp": 0, "input_length": 1}\n', "mooncake", 1, "output_length: is missing"),
        ('{"timestamp": 0, "input_length": "1", "output_length": 1}\n', "mooncake", 1, "input_length: is '1'"),
        ('{"timestamp": 0, "input_length": 1.5, "output_length": 1}\n', "mooncake", 1, "a whole number"),
        ('{"timestamp": NaN, "input_length": 1, "output_length": 1}\n', "mooncake", 1, "timestamp: is 'nan'"),
        ("\n[1]\n", "mooncake", 2, "holds list"),
        ('{"timestamp": 0', "mooncake", 1, "is not JSON"),
        (mooncake((1024, [1, 2]), (1025, [1, 2])), "mooncake", 2, "hash_ids: has 2 ids for 1025 prompt tokens"),
        (mooncake((1024, [1, 2]), (1024, [])), "mooncake", 2, "hash_ids: has 0 ids"),
        (mooncake((512, [True])), "mooncake", 1, "hash_ids: is no list of whole numbers"),
        (mooncake((512, ["a"])), "mooncake", 1, "hash_ids: is no list of whole numbers"),
        (mooncake((512, [1.0])), "mooncake", 1, "hash_ids: is no list of whole numbers"),
        (OPTIONAL + "0,1,1,,high,,\n", "csv", 2, "tenant: is empty"),
        (OPTIONAL + "0,1,1,a,urgent,,\n", "csv", 2, "priority: is 'urgent'"),
        (OPTIONAL + "0,9,1,a,,p,9\n1,9,1,a,,p,10\n", "csv", 3, "prefix_tokens: is '10'"),
        (OPTIONAL + "0,9,1,a,,p,\n", "csv", 2, "prefix_tokens: is '' beside prefix 'p'"),
        (OPTIONAL + "0,9,1,a,,,5\n", "csv", 2, "prefix_tokens: is '5' beside prefix ''"),
        (OPTIONAL + "0,9,1,a,,p,-1\n", "csv", 2, "prefix_tokens: is '-1'"),
        (OPTIONAL + f"0,9,1,{'a' * 200},,,\n", "csv", 2, "tenant: is 'aaaa"),
        ("arrival_s,prompt_tokens,output_tokens,prefix\n0,1,1,a\n", "csv", 1, "prefix: has the column 'prefix' alone"),
        ("arrival_s,prompt_tokens,output_tokens,tenant,tenant\n0,1,1,a,b\n", "csv", 1, "tenant' stands 2 times"),
        (b"\xff\xfe\x00", "csv", 1, "is not UTF-8"),
    ],
)
def test_bad_files_are_told_where(tmp_path: Path, text: str | bytes, kind: str, line: int | None, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_trace(path, kind)  # type: ignore[arg-type]
    assert caught.value.file == str(path)
    assert caught.value.line == line
    assert message in str(caught.value)


def test_damaged_gzip_and_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = gzip.compress(AZURE.encode() * 50)
    with pytest.raises(InputError, match="truncated gzip"):
        read_trace(write(tmp_path, packed[:-20], "a.csv.gz"), "azure")
    with pytest.raises(InputError, match="damaged gzip"):
        read_trace(write(tmp_path, packed[:30] + b"\0\0\0" + packed[33:], "b.csv.gz"), "azure")
    with pytest.raises(InputError, match="not gzip"):
        read_trace(write(tmp_path, AZURE, "c.csv.gz"), "azure")
    with pytest.raises(InputError, match="cannot be read"):
        read_trace(tmp_path / "missing.csv", "azure")
    with pytest.raises(InputError, match="did you mean 'azure'"):
        read_trace(write(tmp_path, AZURE), "azur")  # type: ignore[arg-type]
    monkeypatch.setattr("specs.traffic.trace.MAX_TRACE_BYTES", 1000)
    for name, data in (("bomb.csv.gz", packed), ("large.csv", AZURE.encode() * 50)):
        with pytest.raises(InputError, match="too large"):
            read_trace(write(tmp_path, data, name), "azure")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60) | st.text(max_size=60).map(str.encode), head=st.booleans(), kind=st.integers(0, 6))
def test_any_bytes_are_a_trace_or_one_clear_error(tmp_path: Path, data: bytes, head: bool, kind: int) -> None:
    name, good = [
        ("azure", AZURE),
        ("csv", HEADER),
        ("csv", OPTIONAL + "0,9,1,a,high,p,9\n"),
        ("mooncake", '{"timestamp": 0,'),
        ("mooncake", '{"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": '),
        ("burstgpt", "Timestamp,Request tokens,Response tokens,Session ID\n1,2,3,s\n2,0,"),
        ("sharegpt", ""),
    ][kind]
    path = write(tmp_path, good.encode() + data if head else data)
    problem: InputError | None = None
    try:
        result = read_trace(path, name)  # type: ignore[arg-type]
    except InputError as error:
        problem = error
    if problem is not None:
        assert problem.file == str(path)
        return
    assert len(result.arrival_s) == len(result.prompt_tokens) == len(result.output_tokens) > 0
    assert result.output_tokens.min() >= 1
    assert (np.diff(result.arrival_s) >= 0).all()


def test_scaling_keeps_the_requests_and_sets_the_rate() -> None:
    scaled = trace([0.0, 1.0, 4.0], [1, 2, 3]).scaled(5.0)
    assert scaled.arrival_s == pytest.approx([0.0, 0.1, 0.4])
    assert scaled.rate_per_s == pytest.approx(5.0)
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError):
            scaled.scaled(bad)
    with pytest.raises(InputError, match="one moment"):
        trace([3.0, 3.0], [1, 1]).scaled(2.0)


def test_busiest_window_by_hand() -> None:
    whole = trace([0.0, 1.0, 5.0, 6.0, 15.0], [10, 10, 30, 1, 45])
    window = whole.busiest(5.0)  # [0, 5): 22; [1, 6): 42; [5, 10): 33; [15, 20): 46
    assert (window.start_s, window.arrival_s.tolist()) == (15.0, [0.0])
    window = whole.busiest(6.0)  # [1, 7) holds 44, [0, 6) 53
    assert (window.start_s, window.arrival_s.tolist()) == (0.0, [0.0, 1.0, 5.0])
    assert whole.busiest(100.0).arrival_s.tolist() == whole.arrival_s.tolist()


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 99)), min_size=1, max_size=30), st.floats(0.5, 60))
def test_busiest_window_against_brute_force(rows: list[tuple[float, int]], seconds: float) -> None:
    rows.sort()
    whole = trace([at for at, _ in rows], [work for _, work in rows])
    window = whole.busiest(seconds)
    best = max(sum(w + 1 for at, w in rows if start <= at < start + seconds) for start, _ in rows)
    assert (window.prompt_tokens + window.output_tokens).sum() == best
    assert window.arrival_s[0] == 0.0


def test_arrival_processes() -> None:
    """Rate and burstiness of what is drawn; tolerances are four standard errors at these counts."""
    poisson = poisson_arrivals(50.0, 1000.0, generator())
    assert len(poisson) == pytest.approx(50_000, abs=4 * 224)
    for cv in (0.3, 1.0, 4.0):
        arrivals = gamma_arrivals(50.0, cv, 1000.0, generator(1))
        gaps = np.diff(arrivals)
        assert len(arrivals) == pytest.approx(50_000, abs=4 * 224 * max(cv, 0.3))
        assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.08)
        assert arrivals[0] >= 0
        assert arrivals[-1] < 1000.0
    assert constant_arrivals(4.0, 1.0).tolist() == [0.0, 0.25, 0.5, 0.75]
    assert gamma_arrivals(4.0, 0.0, 1.0, generator()).tolist() == [0.0, 0.25, 0.5, 0.75]
    assert poisson_arrivals(9.0, 20.0, generator(3)).tolist() == poisson_arrivals(9.0, 20.0, generator(3)).tolist()
    for rate, seconds in ((0.0, 1.0), (1.0, -1.0), (float("nan"), 1.0), (1e9, 600.0)):
        with pytest.raises(InputError):
            poisson_arrivals(rate, seconds, generator())


def test_diurnal_arrivals_swing_as_declared() -> None:
    """20 periods of 1000 s: hourly counts against the cosine, the mean over all, and no order lost."""
    arrivals = diurnal_arrivals(10.0, 1.6, 1000.0, 250.0, 0.0, 20_000.0, generator())
    assert len(arrivals) == pytest.approx(200_000, abs=4 * 447)
    assert (np.diff(arrivals) >= 0).all()
    folded = np.histogram(arrivals % 1000.0, bins=50, range=(0, 1000))[0] / (20 * 20.0)
    middle = np.arange(10.0, 1000.0, 20.0)
    wanted = 10.0 * (1 + 0.6 * np.cos(2 * np.pi * (middle - 250.0) / 1000.0))
    assert folded == pytest.approx(wanted, abs=4.5 * np.sqrt(16.0 / 400))
    later = diurnal_arrivals(10.0, 1.6, 1000.0, 250.0, 750.0, 100.0, generator())  # the trough lies at its start
    assert len(later) == pytest.approx(10 * 100 * 0.439, abs=4 * 21)
    flat, poisson = (
        diurnal_arrivals(10.0, 1.0, 1000.0, 0.0, 0.0, 500.0, generator()),
        poisson_arrivals(10.0, 500.0, generator()),
    )
    assert flat.tolist() == poisson.tolist(), "without a swing nothing is thinned"
    for peak, period in ((0.9, 1.0), (2.1, 1.0), (1.5, 0.0), (1.5, float("inf"))):
        with pytest.raises(InputError):
            diurnal_arrivals(1.0, peak, period, 0.0, 0.0, 1.0, generator())


@pytest.mark.parametrize(
    ("mean", "most"), [(40.0, 256), (200.0, 256), (128.5, 256), (3.0, 4), (1.5, None), (300.0, None), (500.0, 100_000)]
)
def test_mean_lengths_have_the_mean_and_keep_the_maximum(mean: float, most: int | None) -> None:
    lengths = draw_mean(mean, most, 400_000, generator())
    assert lengths.mean() == pytest.approx(mean, rel=0.012)
    assert lengths.min() >= 1
    assert most is None or lengths.max() <= most


def test_mean_lengths_spread_as_the_greatest_entropy_does() -> None:
    """Mean 2 without a maximum is geometric with ratio 1/2: half of the lengths are 1, a quarter 2."""
    lengths = draw_mean(2.0, None, 200_000, generator())
    assert (lengths == 1).mean() == pytest.approx(0.5, abs=0.005)
    assert (lengths == 2).mean() == pytest.approx(0.25, abs=0.005)
    assert draw_mean(7.0, 7, 3, generator()).tolist() == [7, 7, 7]
    assert draw_mean(1.0, None, 3, generator()).tolist() == [1, 1, 1]


def test_lognormal_lengths_have_mean_and_p99() -> None:
    lengths = draw_lognormal(2000.0, 7000.0, 400_000, generator())
    assert lengths.mean() == pytest.approx(2000.0, rel=0.01)
    assert np.quantile(lengths, 0.99) == pytest.approx(7000.0, rel=0.02)


def test_other_lengths(tmp_path: Path) -> None:
    assert draw_fixed(7, 3).tolist() == [7, 7, 7]
    uniform = draw_uniform(3, 5, 30_000, generator())
    assert np.bincount(uniform)[3:] == pytest.approx([10_000] * 3, rel=0.05)
    histogram = read_histogram(write(tmp_path, "tokens,count\n10,1\n30,3\n"))
    assert histogram.mean_tokens == 25.0
    drawn = draw_histogram(histogram, 40_000, generator())
    assert set(drawn.tolist()) == {10, 30}
    assert (drawn == 30).mean() == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(
    "text",
    ["", "tokens\n1\n", "tokens,count\n", "tokens,count\n1,0\n", "tokens,count\n0,1\n", "tokens,count\n1,-1\n",
     "tokens,count\n1,nan\n", "tokens,count\nx,1\n", "tokens,count\n1,1\n1,2\n", "tokens,count\n1,1,1\n",
     "tokens,count\n1.5,1\n", "tokens,count\nnan,1\n"],
)  # fmt: skip
def test_bad_histograms(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError):
        read_histogram(write(tmp_path, text))


def test_impossible_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="mean <= max"):
        draw_mean(10.0, 5, 1, generator())
    with pytest.raises(InputError, match="low <= high"):
        draw_uniform(5, 4, 1, generator())
    for mean, p99 in ((100.0, 100.0), (100.0, 50.0), (100.0, 1600.0), (float("nan"), 5.0), (0.0, 5.0)):
        with pytest.raises(InputError):
            draw_lognormal(mean, p99, 1, generator())
    for bad in (0, -1, 10**9):
        with pytest.raises(InputError):
            draw_fixed(bad, 1)


def chains(group: list[int], shared: list[int], chain: list[int], covered: list[int]) -> Chains:
    return Chains(np.array(group), np.array(shared), np.array(chain), np.array(covered))


def test_chains_by_hand() -> None:
    """Two turns of conversation 0, one request of conversation 1; all begin with the 40 tokens of one group."""
    units = chains([0, 0, 0], [40, 40, 40], [0, 0, 1], [64, 100, 64]).units(16)
    one, two, other = (units.of(request) for request in range(3))
    assert (len(one), len(two), len(other)) == (4, 6, 4)
    assert two[:4] == one
    assert other[:2] == one[:2]  # the unit that ends at 48 is no longer the group's alone
    assert not set(other[2:]) & {*one, *two}
    nothing = Chains.of_each(np.array([32, 15])).units(16)
    assert (len(set(nothing.of(0))), nothing.of(1)) == (2, ())


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(1, 200)), min_size=1, max_size=12),
    st.sampled_from([4, 8, 16]),
    st.sampled_from([16, 32]),
)
def test_units_agree_as_far_as_tokens_do(rows: list[tuple[int, int, int]], small: int, large: int) -> None:
    """Against tokens spelled out: equal ids if and only if the beginnings are equal, in every size of unit."""
    shared = 40
    tokens = [
        tuple(("group", group, at) if at < shared else ("chain", group, chain, at) for at in range(covered))
        for group, chain, covered in rows
    ]
    whole = chains(
        [group for group, _, _ in rows],
        [shared] * len(rows),
        [3 * group + chain for group, chain, _ in rows],
        [covered for _, _, covered in rows],
    )
    for unit, units in ((small, whole.units(small)), (large, whole.units(small).units(large))):
        known: dict[int, tuple[object, ...]] = {}
        beginnings: dict[tuple[object, ...], int] = {}
        for request, own in enumerate(tokens):
            ids = units.of(request)
            assert len(ids) == len(own) // unit
            for place, name in enumerate(ids):
                beginning = own[: (place + 1) * unit]
                assert known.setdefault(name, beginning) == beginning
                assert beginnings.setdefault(beginning, name) == name
    finer = whole.units(large).units(small)
    for request in range(len(rows)):
        assert len(finer.of(request)) == len(whole.units(large).of(request)) * (large // small)


def test_parts_of_a_workload_share_nothing_and_get_one_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    trace_of_512 = Prefixes(512, np.array([0, 1]), np.array([0]))
    both = joined([trace_of_512, chains([0], [0], [0], [48])])
    assert (both.unit_tokens, len(both.of(0)), len(both.of(1))) == (16, 32, 3)
    assert not set(both.of(0)) & set(both.of(1))
    assert joined([trace_of_512]).unit_tokens == 512
    monkeypatch.setattr("specs.traffic.prefixes.MOST_UNITS", 20)
    few = joined([trace_of_512, chains([0], [0], [0], [64])])
    assert (few.unit_tokens, len(few.of(0)), len(few.of(1))) == (32, 16, 2)
    with pytest.raises(ValueError, match="cannot become"):
        trace_of_512.units(48)
