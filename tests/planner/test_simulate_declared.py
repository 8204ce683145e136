"""From a declaration to requests: windows, seeds, overridden lengths, sources."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from planner.simulate import declared_workload, slos_of
from specs.deployment import (
    SLO,
    ArrivalSpec,
    ClosedLoopSpec,
    DeploymentSpec,
    DiurnalSpec,
    FixedLength,
    HardwareSpec,
    HistogramLength,
    LengthSpec,
    LognormalLength,
    MeanLength,
    ModelSpec,
    PercentileLimit,
    PoolSpec,
    TraceSpec,
    TrafficClass,
    UniformLength,
)
from specs.errors import InputError, NotHonouredError


def spec(*traffic: TrafficClass) -> DeploymentSpec:
    return DeploymentSpec(
        name="test",
        models={"m": ModelSpec(architecture="some/model")},
        hardware=HardwareSpec(pools=(PoolSpec(name="p", device="d", count=1, gpus_per_node=1),)),
        traffic=traffic,
    )


def drawn(name: str, rate: float = 10.0, prompt: LengthSpec | None = None) -> TrafficClass:
    return TrafficClass(
        name=name,
        model="m",
        arrivals=ArrivalSpec(rate_per_s=rate),
        prompt_tokens=prompt or LognormalLength(mean_tokens=500, p99_tokens=2000),
        output_tokens=MeanLength(mean_tokens=40, max_tokens=256),
    )


def write_trace(folder: Path, rows: int = 200) -> bytes:
    text = "arrival_s,prompt_tokens,output_tokens\n"
    text += "".join(f"{index * 0.5},{100 + index},{1 + index % 7}\n" for index in range(rows))
    (folder / "t.csv").write_text(text)
    return text.encode()


def test_same_seed_same_requests_and_classes_do_not_disturb_each_other(tmp_path: Path) -> None:
    one, _ = declared_workload(spec(drawn("a"), drawn("b")), tmp_path, seconds=60, seed=4)
    two, _ = declared_workload(spec(drawn("a"), drawn("b")), tmp_path, seconds=60, seed=4)
    assert one.arrival_s.tolist() == two.arrival_s.tolist()
    assert one.prompt_tokens.tolist() == two.prompt_tokens.tolist()
    alone, _ = declared_workload(spec(drawn("b")), tmp_path, seconds=60, seed=4)
    assert one.arrival_s[one.of_class("b")].tolist() == alone.arrival_s.tolist()
    assert one.output_tokens[one.of_class("b")].tolist() == alone.output_tokens.tolist()
    assert one.arrival_s[one.of_class("a")].tolist() != alone.arrival_s.tolist()
    other, _ = declared_workload(spec(drawn("a"), drawn("b")), tmp_path, seconds=60, seed=5)
    assert other.arrival_s.tolist() != one.arrival_s.tolist()
    assert (np.diff(one.arrival_s) >= 0).all()
    assert one.horizon_s == 60


def test_trace_is_scaled_then_cut_and_its_source_is_named(tmp_path: Path) -> None:
    data = write_trace(tmp_path)
    traffic = TrafficClass(name="t", model="m", trace=TraceSpec(file="t.csv", rate_per_s=4.0))
    workload, (window,) = declared_workload(spec(traffic), tmp_path, seconds=10)
    # 2/s becomes 4/s: 200 requests in 50 s; prompts grow, so the last 10 s are the busiest
    assert len(workload) == 40
    assert workload.prompt_tokens[-1] == 299
    assert workload.arrival_s[0] == 0.0
    assert workload.horizon_s == 10
    assert window.source == "t.csv"
    assert window.sha256 == hashlib.sha256(data).hexdigest()
    assert (window.start_s, window.end_s, window.requests) == (40.0, 50.0, 40)


def test_a_short_trace_is_kept_whole_and_its_own_length_is_the_window(tmp_path: Path) -> None:
    write_trace(tmp_path)
    traffic = TrafficClass(name="t", model="m", trace=TraceSpec(file="t.csv"))
    workload, (window,) = declared_workload(spec(traffic), tmp_path, seconds=600)
    assert len(workload) == 200
    assert workload.horizon_s == window.end_s == 99.5


def test_declared_lengths_replace_those_of_the_trace(tmp_path: Path) -> None:
    write_trace(tmp_path)
    (tmp_path / "h.csv").write_text("tokens,count\n11,1\n")
    traffic = TrafficClass(
        name="t",
        model="m",
        trace=TraceSpec(file="t.csv"),
        prompt_tokens=HistogramLength(file="h.csv"),
        output_tokens=FixedLength(tokens=3),
    )
    workload, _ = declared_workload(spec(traffic), tmp_path)
    assert set(workload.prompt_tokens.tolist()) == {11}
    assert set(workload.output_tokens.tolist()) == {3}


def test_lengths_without_times_arrive_at_the_declared_rate(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("num_prefill_tokens,num_decode_tokens\n5,1\n6,2\n")
    traffic = TrafficClass(name="t", model="m", trace=TraceSpec(file="s.csv", format="sharegpt", rate_per_s=5.0))
    workload, _ = declared_workload(spec(traffic), tmp_path, seconds=100)
    assert len(workload) == pytest.approx(500, abs=90)
    assert workload.prompt_tokens[:4].tolist() == [5, 6, 5, 6]
    with pytest.raises(InputError, match="no times"):
        declared_workload(
            spec(TrafficClass(name="t", model="m", trace=TraceSpec(file="s.csv", format="sharegpt"))), tmp_path
        )


def test_processes_and_uniform_lengths(tmp_path: Path) -> None:
    traffic = TrafficClass(
        name="t",
        model="m",
        arrivals=ArrivalSpec(rate_per_s=2.0, process="constant", cv=0.0),
        prompt_tokens=UniformLength(low_tokens=3, high_tokens=4),
        output_tokens=FixedLength(tokens=1),
    )
    workload, (window,) = declared_workload(spec(traffic), tmp_path, seconds=3)
    assert workload.arrival_s.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert window.source == "constant arrivals at 2/s"
    assert window.sha256 is None


def test_what_is_not_simulated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotHonouredError):
        declared_workload(spec(TrafficClass(name="t", model="m", closed_loop=ClosedLoopSpec(concurrency=3))), tmp_path)
    with pytest.raises(InputError, match="no request arrives"):
        declared_workload(spec(drawn("t", rate=1e-9)), tmp_path, seconds=10)


def diurnal(name: str = "t", peak_to_mean: float = 1.8, peak_at_s: float = 50_000.0, rate: float = 2.0) -> TrafficClass:
    swing = DiurnalSpec(peak_to_mean=peak_to_mean, peak_at_s=peak_at_s)
    return TrafficClass(
        name=name,
        model="m",
        arrivals=ArrivalSpec(rate_per_s=rate, process="diurnal", diurnal=swing),
        prompt_tokens=FixedLength(tokens=3),
        output_tokens=FixedLength(tokens=1),
    )


def test_a_diurnal_window_lies_around_the_peak(tmp_path: Path) -> None:
    workload, (window,) = declared_workload(spec(diurnal()), tmp_path, seconds=2000)
    assert (window.start_s, window.end_s) == (49_000, 51_000)
    assert len(workload) == pytest.approx(2 * 1.8 * 2000, abs=4 * 85)
    assert window.source == "diurnal arrivals at 2/s, 1.8 times that at the peak"
    assert window.mean_output_tokens_per_s == 2.0, "of the whole day"
    _, (early,) = declared_workload(spec(diurnal(peak_at_s=100.0)), tmp_path, seconds=600)
    assert early.start_s == 86_400 - 200


def test_a_window_of_a_day_has_its_peaks_where_they_are_stated(tmp_path: Path) -> None:
    both = spec(diurnal("noon"), diurnal("night", peak_at_s=6800.0))
    workload, windows = declared_workload(both, tmp_path, seconds=86_400)
    assert {window.start_s for window in windows} == {0.0}
    for name, peak_at_s in (("noon", 50_000), ("night", 6800)):
        own = workload.arrival_s[workload.of_class(name)]
        assert len(own) == pytest.approx(172_800, abs=4 * 416)
        near = ((own > peak_at_s - 1800) & (own < peak_at_s + 1800)).sum()
        opposite = peak_at_s + 43_200 if peak_at_s < 43_200 else peak_at_s - 43_200
        far = ((own > opposite - 1800) & (own < opposite + 1800)).sum()
        assert near == pytest.approx(3600 * 2 * 1.8, rel=0.04)
        assert far == pytest.approx(3600 * 2 * 0.2, rel=0.12)


def test_a_diurnal_window_does_not_grow_beyond_the_peak(tmp_path: Path) -> None:
    _, (window,) = declared_workload(spec(diurnal(rate=0.01)), tmp_path, least_requests=1000)
    assert window.end_s - window.start_s == 86_400 / 4


def test_a_rare_class_gets_a_longer_window(tmp_path: Path) -> None:
    rare = drawn("rare", rate=0.5)
    workload, (window,) = declared_workload(spec(rare), tmp_path, least_requests=1000)
    assert workload.horizon_s == window.end_s == 2000
    assert len(workload) == pytest.approx(1000, abs=100)
    plenty, _ = declared_workload(spec(drawn("often", rate=5.0)), tmp_path, least_requests=1000)
    assert plenty.horizon_s == 600
    rarest, _ = declared_workload(spec(drawn("rarest", rate=1 / 3600)), tmp_path, least_requests=1000)
    assert rarest.horizon_s == 7 * 86_400  # a week and no more


def test_a_longer_window_holds_all_classes_and_no_more_than_a_simulation_can_bear(tmp_path: Path) -> None:
    workload, windows = declared_workload(
        spec(drawn("often", rate=20.0), drawn("rare", rate=0.5)), tmp_path, least_requests=1000
    )
    assert {window.end_s for window in windows} == {workload.horizon_s}
    assert workload.horizon_s == pytest.approx(20_000 / 20.5)
    heavy, _ = declared_workload(
        spec(drawn("often", rate=100.0), drawn("rare", rate=0.5)), tmp_path, least_requests=1000
    )
    assert heavy.horizon_s == 600


def test_a_longer_window_ends_with_the_trace(tmp_path: Path) -> None:
    write_trace(tmp_path)
    trace = TrafficClass(name="t", model="m", trace=TraceSpec(file="t.csv", rate_per_s=0.25))  # 200 requests, 796 s
    workload, windows = declared_workload(spec(trace, drawn("rare", rate=0.5)), tmp_path, least_requests=1000)
    assert workload.horizon_s == pytest.approx(796)
    assert windows[0].requests == 200


def test_the_mean_traffic_is_that_of_the_whole_source(tmp_path: Path) -> None:
    write_trace(tmp_path)  # 2/s, prompts 100 .. 299
    trace = TrafficClass(name="t", model="m", trace=TraceSpec(file="t.csv"))
    _, (window,) = declared_workload(spec(trace), tmp_path, seconds=10)  # the longest prompts come last
    assert window.mean_prompt_tokens_per_s == pytest.approx(2 * 199.5)
    assert window.mean_output_tokens_per_s == pytest.approx(2 * np.mean([1 + index % 7 for index in range(200)]))
    fixed = drawn("f", rate=3.0, prompt=FixedLength(tokens=7))
    _, (window,) = declared_workload(spec(fixed), tmp_path, seconds=10)
    assert window.mean_prompt_tokens_per_s == pytest.approx(21)


@pytest.mark.parametrize("rows", ["0,10,1\n", "3,10,1\n3,10,1\n"])
def test_requests_of_one_moment_are_no_traffic(tmp_path: Path, rows: str) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    with pytest.raises(InputError, match="come at one moment") as caught:
        declared_workload(spec(TrafficClass(name="t", model="m", trace=TraceSpec(file="t.csv"))), tmp_path)
    assert caught.value.field == "traffic[0].trace.file"


def test_objectives_by_class() -> None:
    slo = SLO(percentiles=(PercentileLimit(metric="ttft", percentile=90, limit_s=1.0),))
    traffic = (drawn("a").model_copy(update={"slo": slo}), drawn("b"))
    assert slos_of(spec(*traffic)) == {"a": slo}
    assert slos_of(spec(*traffic), "other") == {}
