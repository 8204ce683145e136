"""Offloading policies against brute force over shares, hand-solved ones, and FlexGen's published answer's shape."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest

from benchmarks import offloading as benchmark
from benchmarks.published import run
from planner.cost.transfer import host_link
from planner.optimize.offloading import (
    HostFacts,
    LayerCosts,
    OffloadingPolicy,
    Workload,
    best_policy,
    fastest,
    layer_costs,
    solve_shares,
)
from specs.architecture import load_architecture
from specs.catalog import load_device, load_engine, load_node, load_profile
from specs.document import DType
from specs.errors import InputError, NoPlanError

DEVICE, ENGINE = load_device("l4"), load_engine("capstan")
ROOM = DEVICE.memory_bytes * ENGINE.memory_fraction
LINK = host_link(DEVICE, duplex=True).reached_bytes_per_s
WORK = Workload(100, 11)
HOST = HostFacts(40e9, disk_bytes=60e9, disk_read_bytes_per_s=4e9, disk_write_bytes_per_s=2e9)
COST = LayerCosts(
    gpu_batch=10,
    layers=10,
    prefill_compute_s=0.05,
    prefill_attention_s=0.01,
    decode_compute_s=0.004,
    decode_attention_s=0.002,
    weight_bytes=3e9,
    prompt_kv_bytes=20e6,
    mean_kv_bytes=21e6,
    last_kv_bytes=22e6,
    token_kv_bytes=0.2e6,
    activation_bytes=8e3,
    fixed_bytes=1e9,
    prefill_peak_bytes=1e9,
    decode_peak_bytes=0.1e9,
)


def law(cost: LayerCosts, n: int, host: HostFacts, w: list[float], c: list[float], a: list[float]) -> float:
    """Seconds of a block under shares on device, host, disk (and attended), written out anew; inf: no room."""
    block = cost.gpu_batch * n
    attended = c[3] if len(c) > 3 else 0.0
    kv, act = cost.layers * block * cost.last_kv_bytes, block * WORK.prompt_tokens * cost.activation_bytes
    weights = cost.layers * cost.weight_bytes
    on_device = w[0] * weights + c[0] * kv + a[0] * act + 2 * (1 - w[0]) * cost.weight_bytes
    on_device += 2 * (c[1] + c[2]) * kv / (cost.layers * n) + cost.fixed_bytes + cost.prefill_peak_bytes
    staged = 2 * (w[2] * weights + c[2] * kv) / cost.layers
    on_host = w[1] * weights + (c[1] + attended) * kv + a[1] * act + staged
    if on_device > ROOM or on_host > host.memory_bytes or w[2] * weights + c[2] * kv + a[2] * act > host.disk_bytes:
        return float("inf")
    away, moved = 1 - w[0], (1 - a[0]) * act
    prompt_kv = block * cost.prompt_kv_bytes
    prefill = max(
        n * (cost.prefill_compute_s + cost.prefill_attention_s),
        (away * cost.weight_bytes + moved) / LINK,
        ((1 - c[0]) * prompt_kv + moved) / LINK,
        (w[2] * cost.weight_bytes + a[2] * act) / host.disk_read_bytes_per_s,
        (c[2] * prompt_kv + a[2] * act) / host.disk_write_bytes_per_s,
    )
    token = block * cost.activation_bytes
    compute = n * (cost.decode_compute_s + (1 - attended) * cost.decode_attention_s)
    if attended:
        compute += attended * block * cost.mean_kv_bytes / host.attention_bytes_per_s
    read = block * cost.mean_kv_bytes
    decode = max(
        compute,
        (away * cost.weight_bytes + (c[1] + c[2]) * read + ((1 - a[0]) + attended) * token) / LINK,
        ((1 - c[0]) * block * cost.token_kv_bytes + ((1 - a[0]) + attended) * token) / LINK,
        (w[2] * cost.weight_bytes + c[2] * read + a[2] * token) / host.disk_read_bytes_per_s,
        (c[2] * block * cost.token_kv_bytes + a[2] * token) / host.disk_write_bytes_per_s,
    )
    return cost.layers * (prefill + (WORK.output_tokens - 1) * decode)


def simplex(parts: int, steps: int) -> list[list[float]]:
    return [
        [x / steps for x in (*cut, steps - sum(cut))]
        for cut in itertools.product(range(steps + 1), repeat=parts - 1)
        if sum(cut) <= steps
    ]


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("attention", [0.0, 20e9])
def test_no_shares_on_a_grid_are_faster(n: int, attention: float) -> None:
    host = replace(HOST, attention_bytes_per_s=attention)
    found = solve_shares(COST, n, DEVICE, ENGINE, host, WORK)
    assert found is not None
    best = min(
        law(COST, n, host, w, c, a)
        for w in simplex(3, 20)
        for c in simplex(4 if attention else 3, 6)
        for a in ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0])
    )
    assert best * 0.85 <= found.seconds <= best * (1 + 1e-6)


@pytest.mark.parametrize("attention", [0.0, 20e9])
def test_the_policy_takes_the_seconds_that_it_states(attention: float) -> None:
    host = replace(HOST, attention_bytes_per_s=attention)
    found = solve_shares(COST, 2, DEVICE, ENGINE, host, WORK)
    assert found is not None
    tiers = ["device", "host", "disk", "attended"]
    shares = [
        [of.get(tier, 0.0) * (1 - 1e-9) for tier in tiers] for of in (found.weights, found.cache, found.activations)
    ]
    assert [sum(of.values()) for of in (found.weights, found.cache, found.activations)] == pytest.approx([1, 1, 1])
    slack = replace(host, memory_bytes=host.memory_bytes * (1 + 1e-6), disk_bytes=host.disk_bytes * (1 + 1e-6))
    assert law(replace(COST, fixed_bytes=COST.fixed_bytes - 1e5), 2, slack, *shares) == pytest.approx(found.seconds)
    assert found.tokens_per_s == pytest.approx(20 * 11 / found.seconds)


def test_what_fits_stays_on_the_device() -> None:
    small = replace(COST, weight_bytes=1e8, last_kv_bytes=1e6)
    found = solve_shares(small, 1, DEVICE, ENGINE, HOST, WORK)
    assert found is not None
    assert found.seconds == pytest.approx(10 * (0.06 + 10 * 0.006))
    assert found.binds == {"prefill": "compute", "decode": "compute"}
    assert found.tokens_per_s <= fastest(small, 1, WORK)


def test_a_link_decides_where_weights_do_not_fit() -> None:
    """One sequence, 3 GB a layer: per layer and token the weights that are not on the device cross the link."""
    thin = replace(COST, gpu_batch=1, last_kv_bytes=0.0, mean_kv_bytes=0.0, prompt_kv_bytes=0.0, token_kv_bytes=0.0)
    found = solve_shares(thin, 1, DEVICE, ENGINE, HOST, WORK)
    assert found is not None
    # the device holds x of 30 GB and buffers of 2 (1 - x) 3 GB in what context and peak leave
    held = (ROOM - 2e9 - 6e9) / 24e9
    assert found.weights["device"] == pytest.approx(held, rel=1e-3)
    assert found.decode_s == pytest.approx(10 * 10 * (1 - held) * 3e9 / LINK, rel=1e-3)
    assert found.binds["decode"] == "device from host"


def test_the_host_attends_where_that_is_faster_than_the_link() -> None:
    tight = replace(COST, weight_bytes=2.0e9)
    without = solve_shares(tight, 4, DEVICE, ENGINE, HOST, WORK)
    fast = solve_shares(tight, 4, DEVICE, ENGINE, replace(HOST, attention_bytes_per_s=100e9), WORK)
    slow = solve_shares(tight, 4, DEVICE, ENGINE, replace(HOST, attention_bytes_per_s=1e6), WORK)
    assert without is not None
    assert fast is not None
    assert slow is not None
    assert fast.cache["attended"] > 0.1
    assert fast.seconds < without.seconds
    assert slow.seconds == pytest.approx(without.seconds, rel=1e-2)


def test_more_of_anything_is_never_slower() -> None:
    base = solve_shares(COST, 4, DEVICE, ENGINE, HOST, WORK)
    assert base is not None
    for name in ("memory_bytes", "disk_bytes", "disk_read_bytes_per_s", "disk_write_bytes_per_s"):
        more = solve_shares(COST, 4, DEVICE, ENGINE, replace(HOST, **{name: getattr(HOST, name) * 1.5}), WORK)
        assert more is not None
        assert more.seconds <= base.seconds * (1 + 1e-6)


def opt(batch: int | None, blocks: int | None, model: str = "30b", attention: float = 50e9) -> OffloadingPolicy:
    device, profile = benchmark.t4()
    source = benchmark.RooflineLatency(device, profile)
    sizes = {"batches": (batch,)} if batch else {}
    sizes |= {"blocks": (blocks,)} if blocks else {}
    architecture = load_architecture(benchmark.OPT_30B) if model == "30b" else load_architecture("facebook/opt-175b")
    host = HostFacts(200e9, attention_bytes_per_s=attention)
    return best_policy(
        architecture,
        device,
        profile,
        ENGINE,
        host,
        Workload(512, 32),
        latency=source,
        **sizes,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("attention", [0.0, 50e9])
def test_the_shape_of_flexgens_published_answer(attention: float) -> None:
    """OPT-30B, 48 x 3, 16 GB: 8.7 % of the weights on the GPU, cache and activations on the host."""
    found = opt(48, 3, attention=attention)
    assert 0.04 < found.weights["device"] < 0.2
    assert found.cache["device"] == pytest.approx(0.0, abs=1e-6)
    assert found.activations["host"] > 0.9
    assert found.block == 144


def test_flexgens_infeasible_question_has_no_plan() -> None:
    with pytest.raises(NoPlanError, match=r"weights alone take 349\.7 GB"):
        opt(32, 8, "175b")


def test_batches_and_blocks_are_chosen() -> None:
    best = opt(None, None)
    assert best.tokens_per_s >= opt(48, 3).tokens_per_s
    every = [(b, n) for b, n in itertools.product((16, 48, 64), (2, 4, 8)) if (b, n) != (best.gpu_batch, best.batches)]
    for batch, blocks in every:
        try:
            assert opt(batch, blocks).tokens_per_s <= best.tokens_per_s * (1 + 1e-6)
        except NoPlanError:
            continue


def test_costs_are_those_of_the_planners_operators() -> None:
    architecture = load_architecture("Qwen/Qwen3-8B")
    device, profile = load_device("h100"), load_profile("h100")
    from planner.cost.latency import latency_of

    source = latency_of(device, profile)
    cost = layer_costs(architecture, device, profile, ENGINE, source, Workload(1000, 101), 8, DType.BF16, DType.BF16)
    assert cost.layers * cost.last_kv_bytes == pytest.approx(1101 * architecture.kv_bytes_per_token(DType.BF16, 1))
    assert cost.token_kv_bytes * cost.layers == pytest.approx(architecture.kv_bytes_per_token(DType.BF16, 1))
    weights = cost.layers * cost.weight_bytes
    assert 13e9 < weights < 16e9  # 8.2e9 parameters in 16 bit, without embedding and head
    assert cost.layers * cost.decode_compute_s > weights / device.hbm_bytes_per_s
    assert cost.prefill_attention_s > cost.decode_attention_s > 0


def test_hosts_share_a_node() -> None:
    node = load_node("dgx-h100")
    host = HostFacts.of_node(node)
    assert host.memory_bytes == node.host_memory_bytes / 8
    assert host.disk_read_bytes_per_s == node.nvme_bytes_per_s / 8
    assert HostFacts.of_node(node, 1).memory_bytes == node.host_memory_bytes


def test_figures_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match=r"host\.memory_bytes"):
        HostFacts(-1.0)
    with pytest.raises(InputError, match="a disk needs rates"):
        HostFacts(1.0, disk_bytes=1.0)
    with pytest.raises(InputError, match="at least 1 token"):
        Workload(0, 1)


def call(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["x", *arguments])
    run(benchmark.main)


def test_the_benchmark_answers_the_published_questions(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call([], monkeypatch)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["status"] for line in lines] == ["optimal", "optimal", "infeasible"]
    assert (lines[0]["gpu_batch"], lines[0]["batches"], lines[0]["gap"]) == (48, 3, 0.0)
    assert all(line.get("predicted", True) for line in lines)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "facebook/opt-175b"], 3, "no share of the tiers"),
        (["--model", "facebook/opt-1"], 2, "is no model of the catalogue"),
        (["--device", "t5"], 2, "unknown device"),
        (["--batch", "0"], 2, "--batch: must be at least 1"),
        (["--host-memory", "-1"], 2, "host.memory_bytes: must be finite"),
        (["--prompt", "0"], 2, "at least 1 token"),
    ],
)
def test_bad_questions_end_with_one_message(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as ended:
        call(arguments, monkeypatch)
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (code, "")
    assert message in told.err
