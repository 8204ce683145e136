"""Transfers: laws of links, shards of a KV cache, storage tiers, experts' all-to-all, sums over several domains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cost.transfer import (
    ALL_TO_ALL_KERNELS,
    AllToAllKernel,
    KVShards,
    Link,
    Phase,
    collective_link,
    device_link,
    expert_all_to_all_s,
    hierarchical_all_reduce_s,
    host_link,
    kv_shards,
    kv_transfer_s,
    network_all_reduce_s,
    nvme_link,
    point_to_point_s,
)
from specs.architecture import Architecture, load_architecture
from specs.catalog import NodeFacts, device_names, load_device, load_node, load_node_of, node_names
from specs.document import DType
from specs.errors import InputError
from specs.plan import Layout

# 450 GB/s NVLink, 64 GB/s PCIe, 50 GB/s network, 5 us between nodes
H100 = load_device("h100-sxm")
L40S = load_device("l40s")
DGX = load_node("dgx-h100")
LLAMA = load_architecture("meta-llama/Llama-2-70b-hf")
BYTES = st.floats(1.0, 1e12)
SIZES = np.array([0.0, 1.0, 1e3, 1e6, 1e9, 1e11])


def layout(tensor: int, *stages: int) -> Layout:
    return Layout(tensor_parallel=tensor, pipeline_stages=stages or (80,))


# Links


def test_a_message_by_hand() -> None:
    link = Link(bytes_per_s=50e9, latency_s=1e-5, efficiency=0.8)
    assert float(link.seconds(4e9)) == pytest.approx(0.1 + 1e-5)
    # 1 GB: over NVLink at 0.85 x 450 GB/s, over PCIe at 0.85 x 64, over the network at 0.9 x 50
    assert float(point_to_point_s(1e9, H100, "domain")) == pytest.approx(1e-5 + 1 / 382.5, rel=1e-6)
    assert float(point_to_point_s(1e9, H100, "node")) == pytest.approx(1e-5 + 1 / 54.4, rel=1e-6)
    assert float(point_to_point_s(1e9, H100, "network")) == pytest.approx(1.5e-5 + 1 / 45, rel=1e-6)


@pytest.mark.parametrize("name", device_names())
@pytest.mark.parametrize("reach", ["domain", "node", "network"])
def test_more_bytes_never_arrive_sooner_nor_faster_than_the_wire(name: str, reach: str) -> None:
    device = load_device(name)
    link = device_link(device, reach)  # type: ignore[arg-type]
    seconds = link.seconds(SIZES)
    assert seconds[0] == 0.0
    assert (np.diff(seconds) > 0).all()
    assert (seconds >= SIZES / link.bytes_per_s).all()
    assert link.bytes_per_s <= max(device.link_bytes_per_s, device.pcie_bytes_per_s)


def test_a_network_faster_than_pcie_is_held_up_by_it() -> None:
    fast = H100.model_copy(update={"nic_bytes_per_s": 400e9})
    assert device_link(fast, "network").reached_bytes_per_s == pytest.approx(0.85 * 64e9)


def test_a_device_without_a_link_is_named() -> None:
    with pytest.raises(InputError, match="h100-sxm has no link to other nodes"):
        device_link(H100.model_copy(update={"nic_bytes_per_s": 0.0}), "network")
    with pytest.raises(InputError, match="h100-sxm has no link to other devices"):
        device_link(H100.model_copy(update={"link_bytes_per_s": 0.0}), "domain")


def test_many_ranks_over_pcie_share_it() -> None:
    reached = [collective_link(L40S, ranks).reached_bytes_per_s for ranks in (2, 3, 4, 8, 16)]
    assert reached == sorted(reached, reverse=True)
    assert collective_link(H100, 8).reached_bytes_per_s == collective_link(H100, 2).reached_bytes_per_s


# Tiers


def test_the_tiers_by_hand() -> None:
    assert host_link(H100).reached_bytes_per_s == pytest.approx(54.4e9)
    # eight devices share 48 GB/s of drives: 6 GB/s each; one alone gets all of it
    assert nvme_link(H100, DGX, sharers=8).reached_bytes_per_s == pytest.approx(6e9)
    assert nvme_link(H100, DGX).reached_bytes_per_s == pytest.approx(48e9)
    assert nvme_link(L40S, DGX).reached_bytes_per_s == pytest.approx(0.85 * 32e9)  # PCIe is slower than the drives
    assert float(nvme_link(H100, DGX, 8).seconds(6e9)) == pytest.approx(1.0 + 1.1e-4)


def test_tiers_order_as_they_must() -> None:
    best = host_link(H100).seconds(1e9)
    assert host_link(H100, duplex=True).seconds(1e9) > best
    assert host_link(H100, pinned=False).seconds(1e9) > best
    assert nvme_link(H100, DGX).seconds(1e9) > best
    assert nvme_link(H100, DGX, 4).seconds(1e9) > nvme_link(H100, DGX, 2).seconds(1e9)


@pytest.mark.parametrize("name", node_names())
def test_nodes_state_their_tiers_and_where_from(name: str) -> None:
    node = load_node(name)
    assert node.host_memory_bytes < node.nvme_bytes
    assert 0 < node.nvme_bytes_per_s < 100e9
    assert any("nvme_bytes" in key and "estimate" in text for key, text in node.sources.items())
    assert load_node_of(node.device) == node


def test_a_node_without_drives_or_without_an_entry() -> None:
    old = {key: value for key, value in DGX.model_dump().items() if not key.startswith("nvme")}
    with pytest.raises(InputError, match="node dgx-h100 has no local storage"):
        nvme_link(H100, NodeFacts.model_validate(old))
    assert load_node_of("rtx-4090") is None


# KV transfer


def test_a_request_by_hand() -> None:
    # Llama-2-70B: 80 layers x 2 x 8 heads x 128 x 2 bytes = 327,680 bytes per token; 1,000 tokens over four links
    shards = kv_shards(LLAMA, 1000, DType.BF16, layout(4), layout(4))
    assert shards.bottleneck_bytes == 327_680 * 1000 / 4
    seconds = kv_transfer_s(shards, device_link(H100, "network"))
    assert seconds == pytest.approx(15e-6 + 81.92e6 / 45e9, rel=1e-6)


@pytest.mark.parametrize(
    ("one", "other", "links"),
    [
        (layout(1), layout(1), 1),
        (layout(2), layout(8), 2),
        (layout(8), layout(4), 4),
        (layout(2, 40, 40), layout(8), 4),
        (layout(2, 40, 40), layout(1, 20, 20, 20, 20), 4),
        (layout(8), layout(1, 20, 20, 20, 20), 4),
    ],
)
def test_the_fewer_ranks_are_the_links(one: Layout, other: Layout, links: int) -> None:
    whole = LLAMA.sequence_bytes(1000, DType.BF16, 1)
    there = kv_shards(LLAMA, 1000, DType.BF16, one, other)
    back = kv_shards(LLAMA, 1000, DType.BF16, other, one)
    assert there.bottleneck_bytes == pytest.approx(whole / links)
    assert back == KVShards(there.received_bytes, there.sent_bytes)


def test_the_fullest_stage_counts() -> None:
    uneven = kv_shards(LLAMA, 100, DType.BF16, layout(1, 60, 20), layout(1, 40, 40))
    whole = LLAMA.sequence_bytes(100, DType.BF16, 1)
    assert (uneven.sent_bytes, uneven.received_bytes) == (whole * 60 / 80, whole * 40 / 80)


def test_copies_of_heads_are_sent_to_every_rank_that_holds_one() -> None:
    whole = LLAMA.sequence_bytes(100, DType.BF16, 1)
    assert kv_shards(LLAMA, 100, DType.BF16, layout(8), layout(16)).sent_bytes == whole * 2 / 8  # 8 heads on 16 ranks
    latent = load_architecture("deepseek-ai/DeepSeek-V3")
    each = kv_shards(latent, 100, DType.BF16, Layout(pipeline_stages=(61,)), layout(8, 61))
    assert each.received_bytes == latent.sequence_bytes(100, DType.BF16, 1)
    assert each.sent_bytes == 8 * each.received_bytes


def windowed(architecture: Architecture, tokens: int) -> float:
    stages = (len(architecture.layers),)
    return kv_shards(architecture, tokens, DType.BF16, layout(1, *stages), layout(1, *stages)).sent_bytes


def test_windows_and_state_are_sent_as_they_are_kept() -> None:
    oss = load_architecture("openai/gpt-oss-20b")  # every second layer keeps 128 tokens
    full = oss.kv_bytes_per_token(DType.BF16, 1)
    assert windowed(oss, 10_128) - windowed(oss, 128) == pytest.approx(10_000 * full)
    nemotron = load_architecture("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16")
    assert windowed(nemotron, 1) > nemotron.state_bytes(1) > 0


SHARDS = KVShards(8e9, 8e9)
LINK = Link(80e9, 1e-5)  # 0.1 s of wire


@pytest.mark.parametrize(
    ("prefill_s", "pieces", "exposed"),
    [
        (0.5, 1, 0.1),  # as a whole
        (0.5, 80, 0.1 / 80),  # hidden but for the last layer
        (0.04, 80, 0.1 - 0.04 * 79 / 80),  # the link is the slower one
        (0.0, 80, 0.1),
    ],
)
def test_layers_travel_while_others_are_computed(prefill_s: float, pieces: int, exposed: float) -> None:
    assert kv_transfer_s(SHARDS, LINK, prefill_s, pieces) == pytest.approx(1e-5 + exposed)


@given(st.floats(0.0, 1.0), st.integers(1, 100), BYTES)
def test_the_exposed_part_equals_a_pipeline_walked_piece_by_piece(prefill_s: float, pieces: int, size: float) -> None:
    piece_s = size / LINK.bytes_per_s / pieces
    done = 0.0
    for index in range(pieces):
        done = max(done, prefill_s * (index + 1) / pieces) + piece_s
    expected = LINK.latency_s + done - prefill_s
    assert kv_transfer_s(KVShards(size, size), LINK, prefill_s, pieces) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_nothing_to_send_takes_no_time() -> None:
    assert kv_transfer_s(KVShards(0.0, 0.0), LINK) == 0.0


# Experts

PHASES: tuple[Phase, ...] = ("dispatch", "combine")
PLAIN = AllToAllKernel(deduplicated=False, efficiency=0.5, peer_s=1e-6)
ONCE = replace(PLAIN, deduplicated=True)


def exchange(tokens: object, ranks: int, kernel: AllToAllKernel | None = PLAIN, **given: object) -> np.ndarray:
    return expert_all_to_all_s(tokens, 8, 7168, 2.0, ranks, H100, "dispatch", kernel=kernel, **given)  # type: ignore[arg-type]


def test_an_exchange_inside_a_node_by_hand() -> None:
    # 8,192 tokens on 8 ranks: 1,024 x 8 copies x 14,336 bytes x 7/8 that leave = 102.8 MB at half of 450 GB/s; 7 peers
    assert float(exchange(8192, 8)) == pytest.approx(7e-6 + 102_760_448 / 225e9)
    # once per rank: 8 (1 - (7/8)^8) = 5.251 of 8 ranks get a copy
    copies = 8 * (1 - (7 / 8) ** 8)
    assert float(exchange(8192, 8, ONCE)) == pytest.approx(7e-6 + 102_760_448 / 225e9 * copies / 8)


def test_an_exchange_across_nodes_by_hand() -> None:
    # 32 ranks in 4 nodes: of 8 copies 24/32 take the network at 45 GB/s; 7/32 take NVLink meanwhile
    wire = 1024 * 8 * 14_336 * 24 / 32 / 45e9
    assert float(exchange(32 * 1024, 32)) == pytest.approx(7e-6 + 3e-6 + 5e-6 + wire)
    # once per node: 4 (1 - (3/4)^8) nodes get a copy, of which 3 in 4 are others
    wire = 1024 * 14_336 * 4 * (1 - 0.75**8) * 0.75 / 45e9
    assert float(exchange(32 * 1024, 32, ONCE)) == pytest.approx(7e-6 + 3e-6 + 5e-6 + wire)


def test_the_slower_of_both_links_counts() -> None:
    slow_fast_link = H100.model_copy(update={"link_bytes_per_s": 1e9})
    near, far = (
        float(expert_all_to_all_s(32768, 8, 7168, 2.0, 32, device, "dispatch", kernel=PLAIN))
        for device in (slow_fast_link, H100)
    )
    assert near == pytest.approx(15e-6 + 1024 * 8 * 14_336 * 7 / 32 / 0.5e9)
    assert near > far


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("ranks", [2, 8, 12, 32])
def test_laws_of_an_exchange(phase: Phase, ranks: int) -> None:
    tokens = np.array([0.0, 1.0, 64.0, 4096.0, 1e6])

    def seconds(**given: object) -> np.ndarray:
        return expert_all_to_all_s(tokens, 8, 7168, 2.0, ranks, H100, phase, **given)  # type: ignore[arg-type]

    faster = seconds()
    each = [seconds(kernel=ALL_TO_ALL_KERNELS[name, phase]) for name in ("low_latency", "high_throughput")]
    assert faster[0] == 0.0
    assert (np.diff(faster) > 0).all()
    assert (faster == np.minimum(*each)).all()
    assert (seconds(skew=1.5)[1:] > faster[1:]).all()
    assert (seconds(skew=2.0) >= seconds(skew=1.5)).all()


def test_the_hottest_rank_gets_no_token_twice() -> None:
    # all 8,192 tokens once, an eighth of which it holds itself
    every = 7e-6 + 8192 * 14_336 * 7 / 8 / 225e9
    assert float(exchange(8192, 8, ONCE, skew=8.0)) == pytest.approx(every)
    assert float(exchange(8192, 8, ONCE, skew=2.0)) == pytest.approx(every)  # 2 x 5.251 copies are more than 8
    assert float(exchange(8192, 8, PLAIN, skew=2.0)) > every


def test_one_rank_sends_nothing_and_nonsense_is_refused() -> None:
    assert float(exchange(1024, 1)) == 0.0
    with pytest.raises(ValueError, match=r"router skew 9.0 over 8 ranks"):
        exchange(1024, 8, skew=9.0)
    with pytest.raises(ValueError, match="12 ranks are not whole domains of 8"):
        exchange(1024, 12, ranks_per_domain=8)


def test_fewer_ranks_of_a_domain_take_longer() -> None:
    assert float(exchange(16384, 16, ranks_per_domain=4)) > float(exchange(16384, 16))


# Sums


def test_a_sum_over_two_nodes_by_hand() -> None:
    # 64 MB: 14/8 of it over NVLink at 0.75 x 450 GB/s in 14 hops, then an eighth of it over the network in 2 hops
    inside = 6e-6 + 14e-6 + 14 / 8 * 64e6 / 337.5e9
    across = 6e-6 + 2 * 6e-6 + 8e6 / 45e9
    assert float(network_all_reduce_s(8e6, 2, H100)) == pytest.approx(across)
    assert float(hierarchical_all_reduce_s(64e6, 8, 2, H100)) == pytest.approx(inside + across)


def test_laws_of_a_sum() -> None:
    assert (hierarchical_all_reduce_s(SIZES, 1, 1, H100) == 0.0).all()
    for near, domains in ((8, 1), (1, 4), (4, 2), (8, 4)):
        seconds = hierarchical_all_reduce_s(SIZES, near, domains, H100)
        assert seconds[0] == 0.0
        assert (np.diff(seconds) > 0).all()
        wire = 2 * (near - 1) / near * SIZES / 450e9 + 2 * (domains - 1) / domains * SIZES / near / 50e9
        assert (seconds >= wire).all()
    assert hierarchical_all_reduce_s(1e8, 8, 4, H100) > hierarchical_all_reduce_s(1e8, 8, 2, H100)
    assert hierarchical_all_reduce_s(1e8, 8, 2, H100) < hierarchical_all_reduce_s(1e8, 1, 16, H100)
