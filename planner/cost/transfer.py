"""Bytes between devices, nodes and storage tiers: seconds from the figures of the links.

Every path is a `Link`: latency + bytes / (rate x efficiency). Rates are those of datasheets or of the spec; which
share of them large messages reach, and the latencies, are estimates unless their line says otherwise. What a kernel
table measures (collectives inside a fast domain) is priced by `planner.operators`; here is what no table holds.

Bytes and tokens are arrays; all results are arrays of seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from planner.cost.roofline import Floats
from specs.architecture import Architecture
from specs.catalog import NodeFacts
from specs.document import DType
from specs.errors import InputError
from specs.plan import Layout
from specs.profile import DeviceFacts

Phase = Literal["dispatch", "combine"]
Reach = Literal["domain", "node", "network"]  # joined by the fast link; by PCIe in one node; by the network

# Share of the rate that large messages reach. Estimates: protocol headers take 10 to 15 % of PCIe and of NVLink, less
# of a network with frames of 4 KB; copies through unpinned memory pass a bounce buffer of the driver.
_FAST_EFFICIENCY = 0.85
_PCIE_EFFICIENCY = 0.85
_NETWORK_EFFICIENCY = 0.9
_PAGEABLE_SHARE = 0.4
_DUPLEX_SHARE = 0.85  # of each direction while the other one is busy too
# Estimates: a send with its receive takes NCCL 8 to 12 us inside a node; a copy engine starts in about as long.
_MESSAGE_S = 10e-6
_NVME_READ_S = 100e-6  # datasheets of data-centre drives give 70 to 100 us
# Collectives of few bytes: 5 to 8 us and 0.8 to 1.2 us per hop of a ring. Large ones reach 0.6 to 1.0 of NVLink; over
# PCIe many ranks share few roots. Read off NCCL's all-reduce tables of H100, A100 and L40S.
_COLLECTIVE_S = 6e-6
_HOP_S = 1e-6
_FAST_COLLECTIVE_EFFICIENCY = 0.75
_PCIE_COLLECTIVE_EFFICIENCY = {2: 0.63, 4: 0.16, 8: 0.045}


@dataclass(frozen=True)
class Link:
    """One direction of a path. `bytes_per_s`: what the wire carries; `efficiency`: the share large messages reach."""

    bytes_per_s: float
    latency_s: float
    efficiency: float = 1.0

    @property
    def reached_bytes_per_s(self) -> float:
        return self.bytes_per_s * self.efficiency

    def seconds(self, message_bytes: Floats | float) -> Floats:
        """Seconds of one message; none for no bytes."""
        moved = np.asarray(message_bytes, dtype=float)
        seconds: Floats = np.where(moved > 0.0, self.latency_s + moved / self.reached_bytes_per_s, 0.0)
        return seconds


def device_link(device: DeviceFacts, reach: Reach) -> Link:
    """From one device to another: over the fast link, over PCIe inside a node, or through the network.

    A message through the network also crosses PCIe, so the slower of the two rates counts. Raises `InputError`
    where the device has no such link.
    """
    if reach == "domain":
        efficiency = _PCIE_EFFICIENCY if device.link == "pcie" else _FAST_EFFICIENCY
        link = Link(device.link_bytes_per_s, _MESSAGE_S, efficiency)
    elif reach == "node":
        link = Link(device.pcie_bytes_per_s, _MESSAGE_S, _PCIE_EFFICIENCY)
    else:
        slower = min(device.nic_bytes_per_s * _NETWORK_EFFICIENCY, device.pcie_bytes_per_s * _PCIE_EFFICIENCY)
        wire = min(device.nic_bytes_per_s, device.pcie_bytes_per_s)
        link = Link(wire, _MESSAGE_S + device.network_latency_s, slower / wire if wire else 1.0)
    if link.bytes_per_s <= 0.0:
        what = "to other nodes" if reach == "network" else "to other devices"
        raise InputError(f"{device.name} has no link {what}", field="device", expected="a bandwidth above 0")
    return link


def collective_link(device: DeviceFacts, ranks: int) -> Link:
    """The fast link as each of `ranks` devices reaches it while all of them send at once."""
    efficiency = _FAST_COLLECTIVE_EFFICIENCY
    if device.link == "pcie":
        sizes = sorted(_PCIE_COLLECTIVE_EFFICIENCY)
        efficiency = _PCIE_COLLECTIVE_EFFICIENCY[next((size for size in sizes if size >= ranks), sizes[-1])]
    return replace(device_link(device, "domain"), efficiency=efficiency)


def point_to_point_s(message_bytes: Floats | float, device: DeviceFacts, reach: Reach) -> Floats:
    """Seconds of one message between two devices."""
    return device_link(device, reach).seconds(message_bytes)


# Tiers below device memory


def host_link(device: DeviceFacts, pinned: bool = True, duplex: bool = False) -> Link:
    """Between one device and its host's memory, either direction. `duplex`: both directions are busy at once."""
    share = (1.0 if pinned else _PAGEABLE_SHARE) * (_DUPLEX_SHARE if duplex else 1.0)
    return Link(device.pcie_bytes_per_s, _MESSAGE_S, _PCIE_EFFICIENCY * share)


def nvme_link(device: DeviceFacts, node: NodeFacts, sharers: int = 1) -> Link:
    """From the node's drives through host memory into one device, while `sharers` devices read at once.

    Staged in pieces, so that the slower of the drives' part and of PCIe counts. Raises `InputError` where the
    node has no drives.
    """
    if node.nvme_bytes_per_s <= 0.0:
        raise InputError(f"node {node.name} has no local storage", field="host.nvme", expected="a bandwidth above 0")
    host = host_link(device)
    reached = min(node.nvme_bytes_per_s / sharers, host.reached_bytes_per_s)
    wire = min(node.nvme_bytes_per_s / sharers, host.bytes_per_s)
    return Link(wire, host.latency_s + _NVME_READ_S, reached / wire)


# KV cache of a request, from the replica that prefilled it to the one that decodes it


@dataclass(frozen=True)
class KVShards:
    """Bytes of one request on the fullest rank of either side; every receiving rank pulls a shard of its own."""

    sent_bytes: float
    received_bytes: float

    @property
    def bottleneck_bytes(self) -> float:
        """What the busiest link carries."""
        return max(self.sent_bytes, self.received_bytes)


def kv_shards(architecture: Architecture, tokens: int, kv_dtype: DType, sender: Layout, receiver: Layout) -> KVShards:
    """Shards of a request of `tokens` tokens: KV, the last window of windowed layers, recurrent state.

    A request lives on the tensor-parallel ranks and stages of one attention-data-parallel part. With even stages and
    no more ranks than KV heads the busiest link carries the request's bytes / min(ranks of either side). More
    ranks than KV heads hold copies (latent attention: all of them), which are sent once per receiving rank.
    """
    ranks = receiver.tensor_parallel

    def needed(layers: range) -> float:
        return architecture.sequence_bytes(tokens, kv_dtype, ranks, layers)

    received = max(needed(layers) for layers in _stages(receiver))
    sent = max(needed(layers) for layers in _stages(sender)) * ranks / sender.tensor_parallel
    return KVShards(sent, received)


def _stages(layout: Layout) -> list[range]:
    ends = np.cumsum(layout.pipeline_stages).tolist()
    return [range(end - layers, end) for end, layers in zip(ends, layout.pipeline_stages, strict=True)]


def kv_transfer_s(shards: KVShards, link: Link, prefill_s: float = 0.0, pieces: int = 1) -> float:
    """Seconds from the end of a prefill until the receiver has the whole request.

    `pieces` 1: sent as a whole after the prefill. More (the layers, for a transfer by layers): piece i leaves as soon
    as its part of `prefill_s` is computed; the pieces are equal. What is left after the prefill is then the
    larger of one piece and of what the link could not carry meanwhile.
    """
    if shards.bottleneck_bytes <= 0.0:
        return 0.0
    wire = shards.bottleneck_bytes / link.reached_bytes_per_s
    return link.latency_s + max(wire / pieces, wire - prefill_s * (pieces - 1) / pieces)


# Experts: dispatch and combine


@dataclass(frozen=True)
class AllToAllKernel:
    """How tokens travel to their experts.

    `deduplicated`: a token goes once to each rank (and once to each node) that has experts of it, else once per
    expert. `efficiency`: share of the fast link's rate; `peer_s`: latency for each further rank of the domain.
    """

    deduplicated: bool
    efficiency: float
    peer_s: float


# Read off DeepEP on eight H100 and checked on eight H200 by `benchmarks.check_all_to_all`, tokens in 16 bit
ALL_TO_ALL_KERNELS: dict[tuple[str, Phase], AllToAllKernel] = {
    ("low_latency", "dispatch"): AllToAllKernel(deduplicated=False, efficiency=0.48, peer_s=8.7e-6),
    ("low_latency", "combine"): AllToAllKernel(deduplicated=False, efficiency=0.51, peer_s=6.0e-6),
    ("high_throughput", "dispatch"): AllToAllKernel(deduplicated=True, efficiency=0.54, peer_s=35.3e-6),
    ("high_throughput", "combine"): AllToAllKernel(deduplicated=True, efficiency=0.39, peer_s=12.6e-6),
}


def expert_all_to_all_s(
    tokens: Floats | float,
    experts_per_token: int,
    hidden_size: int,
    bytes_per_element: float,
    ranks: int,
    device: DeviceFacts,
    phase: Phase,
    ranks_per_domain: int | None = None,
    skew: float = 1.0,
    kernel: AllToAllKernel | None = None,
) -> Floats:
    """Seconds of one all-to-all, dispatch or combine; a layer of experts has one of each.

    `tokens`: of all `ranks` together, spread evenly. `skew`: load of the hottest rank over the mean, 1 to `ranks`.
    The hottest rank moves tokens / ranks x copies x hidden x bytes x skew. Copies that stay on a rank are not sent;
    those for its own fast domain (of `ranks_per_domain` ranks; None: as many as fit evenly) take the fast link, the
    others the network, at the same time: the slower counts. Experts of a token are taken as independent draws of
    ranks. `kernel` None: the faster of the two. Against DeepEP on eight H200 the median error is 12 to 22 %; nothing
    measured stands behind more than one domain.
    """
    if ranks == 1:
        return np.zeros_like(np.asarray(tokens, dtype=float))
    if not 1.0 <= skew <= ranks:
        raise ValueError(f"router skew {skew} over {ranks} ranks")
    near = math.gcd(ranks, device.fast_domain) if ranks_per_domain is None else ranks_per_domain
    if ranks % near:
        raise ValueError(f"{ranks} ranks are not whole domains of {near}")
    if kernel is None:
        kernels = [ALL_TO_ALL_KERNELS[name, phase] for name in ("low_latency", "high_throughput")]
        shape = (experts_per_token, hidden_size, bytes_per_element, ranks, device, phase, near, skew)
        faster: Floats = np.minimum(*(expert_all_to_all_s(tokens, *shape, kernel=choice) for choice in kernels))
        return faster
    held = np.asarray(tokens, dtype=float) / ranks * hidden_size * bytes_per_element
    fast_copies, network_copies = _copies(experts_per_token, ranks, near, kernel.deduplicated, skew)
    seconds = held * 0.0
    if near > 1:
        fast = collective_link(device, near)
        seconds = held * fast_copies / (fast.bytes_per_s * min(kernel.efficiency, fast.efficiency))
    latency = (near - 1) * kernel.peer_s
    if near < ranks:
        network = device_link(device, "network")
        seconds = np.maximum(seconds, held * network_copies / network.reached_bytes_per_s)
        latency += (ranks // near - 1) * _HOP_S + device.network_latency_s
    total: Floats = np.where(held > 0.0, latency + seconds, 0.0)
    return total


def _copies(experts_per_token: int, ranks: int, near: int, deduplicated: bool, skew: float) -> tuple[float, float]:
    """Copies of a token that the hottest rank moves, (over the fast link, over the network)."""
    domains = ranks // near
    if not deduplicated:
        copies = experts_per_token * skew
        return copies * (near - 1) / ranks, copies * (ranks - near) / ranks
    per_rank = _distinct(experts_per_token, ranks, skew)
    per_domain = _distinct(experts_per_token, domains, min(skew, domains))
    # a token enters a domain on the rank with the sender's index and goes on from there over the fast link
    return per_rank * (near - 1) / near, per_domain * (domains - 1) / domains


def _distinct(draws: int, groups: int, skew: float) -> float:
    """Expected distinct groups that `draws` even draws reach, times the skew; no token goes to a group twice."""
    if groups == 1:
        return 1.0
    return min(float(groups), skew * groups * (1.0 - (1.0 - 1.0 / groups) ** draws))


# All-reduce over more than one fast domain


def hierarchical_all_reduce_s(
    message_bytes: Floats | float, ranks_per_domain: int, domains: int, device: DeviceFacts
) -> Floats:
    """Seconds of a sum over ranks_per_domain x domains ranks of `message_bytes` each; zero for one rank.

    Reduce-scatter inside each domain, `network_all_reduce_s` of each rank's part across domains, all-gather inside.
    Where a kernel table measures the two inner collectives, add those to `network_all_reduce_s` instead: against
    NCCL's tables the inner part is within a third, but for 0.1 to 10 MB, where it is up to 2.4 times too fast (A100).
    """
    moved = np.asarray(message_bytes, dtype=float)
    across = network_all_reduce_s(moved / ranks_per_domain, domains, device)
    if ranks_per_domain == 1:
        return across
    hops = 2 * (ranks_per_domain - 1)
    link = replace(collective_link(device, ranks_per_domain), latency_s=_COLLECTIVE_S + hops * _HOP_S)
    return link.seconds(hops / ranks_per_domain * moved) + across


def network_all_reduce_s(message_bytes: Floats | float, domains: int, device: DeviceFacts) -> Floats:
    """Seconds of a ring all-reduce of `message_bytes` over one rank of each domain, each with a port of its own."""
    moved = np.asarray(message_bytes, dtype=float)
    if domains == 1:
        return np.zeros_like(moved)
    hops = 2 * (domains - 1)
    latency = _COLLECTIVE_S + hops * (_HOP_S + device.network_latency_s)
    return replace(device_link(device, "network"), latency_s=latency).seconds(hops / domains * moved)
