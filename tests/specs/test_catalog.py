"""The catalogue: every entry loads, names resolve one way, figures agree with physics and with each other."""

from __future__ import annotations

import subprocess
import sys

import pytest

from specs.catalog import (
    device_names,
    engine_names,
    facts,
    load_device,
    load_engine,
    load_node,
    load_profile,
    node_names,
)
from specs.document import DType
from specs.errors import InputError

REQUIRED = {
    "a100-sxm", "a100-pcie", "h100-sxm", "h100-pcie", "h200-sxm", "b200", "b300", "gb200", "l40s", "l4", "a10g", "a30",
    "rtx-4090", "rtx-pro-6000", "mi300x", "mi355x", "cpu",
}  # fmt: skip


def test_the_catalogue_holds_the_devices_promised() -> None:
    assert set(device_names()) >= REQUIRED


@pytest.mark.parametrize("name", device_names())
def test_a_device_is_plausible_and_sourced(name: str) -> None:
    device = load_device(name)
    assert device.name == name
    assert device.sources
    assert device.idle_power_w < device.power_w
    assert device.fast_domain >= 1
    if device.vendor == "cpu":
        return
    assert 16e9 < device.memory_bytes < 400e9
    assert device.memory_bytes % 2**20 == 0  # tools report whole MiB
    # a matrix unit needs 25 to 1500 operations per byte of memory bandwidth on every accelerator of these years
    assert 25 < device.flops[DType.BF16] / device.hbm_bytes_per_s < 1500
    assert device.flops[DType.BF16] == device.flops[DType.FP16]
    if DType.FP8 in device.flops:
        assert device.flops[DType.FP8] / device.flops[DType.BF16] == pytest.approx(2.0, rel=0.02)
    if DType.FP4 in device.flops:
        assert device.flops[DType.FP4] >= 1.99 * device.flops[DType.FP8]
    # no NVIDIA or AMD part moves more than 8,192 16-bit operations per clock and multiprocessor, or clocks over 3 GHz
    assert device.flops[DType.BF16] / device.multiprocessors < 8192 * 3e9
    assert set(device.weight_dtypes) >= {DType.BF16, DType.FP16}
    assert (device.link == "pcie") == (device.link_bytes_per_s <= device.pcie_bytes_per_s)


def test_int8_is_slow_on_blackwell_ultra_alone() -> None:
    slow = [name for name in REQUIRED if _int8_share(name) < 1.0]
    assert slow == ["b300"]


def _int8_share(name: str) -> float:
    flops = load_device(name).flops
    return flops[DType.INT8] / flops[DType.BF16] if DType.INT8 in flops else 1.0


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("h100", "h100-sxm"),
        ("H100_SXM", "h100-sxm"),
        ("H100-SXM5-80GB", "h100-sxm"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("nvidia a100-sxm4-80gb", "a100-sxm"),
        ("A100", "a100-sxm"),
        ("h200", "h200-sxm"),
        ("B200-SXM", "b200"),
        ("GeForce RTX 4090", "rtx-4090"),
        ("RTX4090", "rtx-4090"),
        ("AMD Instinct MI300X", "mi300x"),
        ("L40S", "l40s"),
    ],
)
def test_names_are_forgiving(alias: str, name: str) -> None:
    assert load_device(alias).name == name


def test_no_alias_means_two_devices() -> None:
    owner: dict[str, str] = {}
    for name in device_names():
        for alias in (name, *load_device(name).aliases):
            assert owner.setdefault(facts._normal(alias), name) == name


def test_an_unknown_device_names_its_neighbours() -> None:
    with pytest.raises(InputError) as caught:
        load_device("h1000-sxm")
    assert "h100-sxm" in caught.value.nearest
    assert "h100-sxm" in str(caught.value)
    assert caught.value.exit_code == 2
    with pytest.raises(InputError, match=r"unknown engine 'vlm'.*vllm"):
        load_engine("vlm")
    with pytest.raises(InputError, match="unknown node type"):
        load_node("dgx-1")


def test_a_name_is_never_a_path() -> None:
    for name in ("../engines/vllm", "/etc/passwd", "h100-sxm.yaml", ""):
        with pytest.raises(InputError):
            load_device(name)


def test_one_device_is_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = facts._read_yaml
    monkeypatch.setattr(facts, "_read_yaml", lambda path: read.append(path.stem) or original(path))
    facts.load_device.cache_clear()
    facts._device_path.cache_clear()
    load_device("L40S")
    assert read == ["l40s"]


@pytest.mark.parametrize("name", node_names())
def test_nodes_agree_with_their_devices(name: str) -> None:
    node = load_node(name)
    device = load_device(node.device)
    assert node.gpus == device.gpus_per_node
    assert node.fast_domain == device.fast_domain
    assert node.sources


@pytest.mark.parametrize("name", engine_names())
def test_engines_load(name: str) -> None:
    engine = load_engine(name)
    assert engine.name == name
    assert 0.5 < engine.memory_fraction <= 0.95
    assert engine.collective_bytes[1] == 0
    assert engine.sources


def test_the_engines_promised_are_there() -> None:
    assert set(engine_names()) == {"vllm", "sglang", "trtllm", "capstan"}


@pytest.mark.parametrize("name", device_names())
def test_a_profile_stays_below_the_peaks(name: str) -> None:
    device, profile = load_device(name), load_profile(name)
    assert profile.device == name
    points = profile.weight_streaming
    assert [point.bytes for point in points] == sorted(point.bytes for point in points)
    assert all(point.bytes_per_s < device.hbm_bytes_per_s for point in points)
    times = [point.bytes / point.bytes_per_s for point in points]
    assert times == sorted(times)  # more bytes never take less time
    assert set(profile.compute_efficiency) == set(device.flops) == set(profile.gemm_ramp_tokens)
    shares = [
        *profile.compute_efficiency.values(),
        *profile.moe_compute_efficiency.values(),
        *profile.decode_attention_efficiency.values(),
        *profile.allreduce_efficiency.values(),
        profile.prefill_attention_efficiency,
        profile.moe_memory_efficiency,
        profile.elementwise_efficiency,
    ]
    assert all(0.0 < share <= 1.0 for share in shares)
    assert "Apache-2.0" in profile.licence
    assert "aiconfigurator-core" in profile.provenance


def test_what_was_not_measured_says_so() -> None:
    measured = {name for name in device_names() if load_profile(name).confidence == "measured"}
    assert measured == {"a100-sxm", "h100-sxm", "h200-sxm", "l40s"}
    for name in set(device_names()) - measured:
        profile = load_profile(name)
        assert profile.confidence == "borrowed"
        assert profile.relative_of in measured
    for name in measured:
        quantiles = load_profile(name).error_quantiles
        assert 0.0 < quantiles["p50"] < 0.25  # held-out rows; a fit on the wrong unit or column is far beyond
        assert quantiles["gemm_bf16_from_4M_weights_p50"] < 0.12


def test_a_borrowed_profile_takes_the_time_of_its_relative_on_scaled_bytes() -> None:
    relative, borrowed = load_profile("h200-sxm"), load_profile("b200")
    for own, other in zip(borrowed.weight_streaming, relative.weight_streaming, strict=True):
        assert own.bytes / own.bytes_per_s == pytest.approx(other.bytes / other.bytes_per_s, rel=1e-3)


def test_the_catalogue_loads_nothing_heavy() -> None:
    code = (
        "import sys; from specs.catalog import load_device, load_engine, load_profile;"
        "load_device('h100'); load_engine('vllm'); load_profile('h100');"
        "heavy = {'torch', 'pyarrow', 'pandas', 'scipy', 'networkx', 'numpy'} & set(sys.modules); print(heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
