"""`models:` and `hardware:` as they are written."""

from __future__ import annotations

from typing import Any

from specs import quantities as q
from specs.deployment import models as m
from specs.deployment.grammar import ByKind, Field, ListOf, Made, OneOrMore, Place, Record, Shape, mapping_of
from specs.deployment.scalars import (
    BANDWIDTH,
    BYTES,
    DTYPE,
    DURATION,
    POWER,
    PRICE,
    SHARE,
    TOKENS,
    Count,
    Name,
    OneOf,
    Quantity,
    Text,
)  # fmt: skip
from specs.yaml_source import Mapping as MappingNode
from specs.yaml_source import Node, to_plain


class Architecture(Shape[str | dict[str, Any]]):
    says = "a catalogue name such as meta-llama/Llama-3.1-70B, a path, or an inline config"

    def read(self, node: Node, at: Place) -> str | dict[str, Any]:
        if isinstance(node, MappingNode):
            plain: dict[str, Any] = to_plain(mapping_of(node, at, self.says), at.file)
            return plain
        return Text(self.says).read(node, at)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"type": "string", "minLength": 1}, {"type": "object"}]}


ADAPTERS = Record(
    m.AdaptersSpec,
    {
        "count": Field(Count(), "LoRA adapters", required=True),
        "rank": Field(Count(high=4096), "their rank", required=True),
    },
)
SPECULATIVE = Record(
    m.SpeculativeSpec,
    {
        "method": Field(OneOf(("ngram", "draft", "eagle", "mtp")), "who proposes tokens", required=True),
        "acceptance": Field(SHARE, "share of proposed tokens accepted", required=True),
        "max_draft": Field(Count(high=1000), "tokens proposed per step", required=True),
        "draft_model": Field(Text("a model name or path"), "the drafting model"),
    },
)
MODEL_FULL = Record(
    m.ModelSpec,
    {
        "architecture": Field(
            Architecture(), "catalogue name, alias, config.json, its folder, or inline", required=True
        ),
        "weights": Field(
            OneOrMore(DTYPE), "weight type, or the choices left to the planner (default: as the checkpoint stores them)"
        ),
        "kv_cache": Field(OneOrMore(DTYPE), "KV cache type, or the choices left to the planner (default bf16)"),
        "max_context": Field(
            TOKENS,
            "longest prompt plus output served (default: the longest request of its traffic, rounded up to a multiple "
            "of 1024, at most what the model allows)",
            "max_context_tokens",
        ),
        "adapters": Field(ADAPTERS, "LoRA adapters"),
        "speculative": Field(SPECULATIVE, "speculative decoding"),
        "expert_load": Field(
            Text("a path"),
            "CSV or JSON, a row a layer and a column an expert: what the router was measured to send where. Experts "
            "spread over ranks are then copied and placed for it",
        ),
    },
)
MODEL = ByKind(
    Made(Text("a catalogue name or a path"), lambda name, at: m.ModelSpec(architecture=name)),
    MODEL_FULL,
)


def _finish_pool(values: dict[str, Any], at: Place) -> None:
    values.setdefault("gpus_per_node", min(8, values["count"]))
    priced = "usd_per_gpu_hour" in values
    values.setdefault("rent", "node" if priced else "gpu")
    count, per_node = values["count"], values["gpus_per_node"]
    if values["rent"] == "node" and count % per_node:
        more = count + per_node - count % per_node
        message = f"{count} devices are no whole number of nodes of {per_node}, and rent: node bills whole nodes"
        raise at.error(message, f"a multiple of {per_node} such as {more}, or rent: gpu", field="count")


SPOT = Record(
    m.SpotSpec,
    {
        "discount": Field(SHARE, "off the price", required=True),
        "interruptions": Field(
            Quantity(q.PER_HOUR, q.parse_per_hour), "per machine", "interruptions_per_hour", required=True
        ),
        "recovery": Field(
            DURATION, "from an interruption until a replacement serves (default 10 minutes)", "recovery_s"
        ),
    },
)
POOL = Record(
    m.PoolSpec,
    {
        "name": Field(Name(), "what the pool is called", required=True),
        "device": Field(Text("a device of the catalogue", 64), "device of the catalogue: h100-sxm, l40s, ...",
                        required=True),
        "count": Field(Count(), "devices that may be used", required=True),
        "gpus_per_node": Field(Count(high=1024), "devices in one node (default: 8, or count where that is less)"),
        "price": Field(PRICE, "per device", "usd_per_gpu_hour"),
        "rent": Field(OneOf(("node", "gpu")), "billed by whole nodes (default where priced) or single devices"),
        "power_cap": Field(POWER, "per device", "power_cap_w"),
        "spot": Field(SPOT, "interruptible machines"),
    },
    _finish_pool,
)  # fmt: skip


def _pair(names: tuple[str, ...], at: Place) -> tuple[str, str]:
    if len(names) != 2:
        raise at.error(f"names {len(names)} pools", "two pools (the same twice: inside it)")
    return names[0], names[1]


def _ends(names: tuple[str, ...], at: Place) -> tuple[str, str]:
    if len(names) != 2:
        raise at.error(f"names {len(names)} ends", "two: nodes or switches")
    return names[0], names[1]


LINK = Record(
    m.LinkSpec,
    {
        "between": Field(Made(ListOf(Name()), _pair), "two pools; the same twice: between its nodes", required=True),
        "bandwidth": Field(BANDWIDTH, "per device and direction", "bandwidth_bytes_per_s", required=True),
        "latency": Field(DURATION, "one way", "latency_s"),
    },
)
CABLE = Record(
    m.CableSpec,
    {
        "between": Field(
            Made(ListOf(Text("POOL/3, POOL/0-3, POOL/* or the name of a switch", 128)), _ends),
            "two ends, each `POOL/3`, `POOL/0-3`, `POOL/*` or the name of a switch",
            required=True,
        ),
        "bandwidth": Field(BANDWIDTH, "of each cable and direction", "bandwidth_bytes_per_s", required=True),
        "latency": Field(DURATION, "of each cable, one way", "latency_s"),
    },
)
NETWORK = Record(
    m.NetworkSpec,
    {
        "bandwidth": Field(BANDWIDTH, "between nodes, per device and direction", "bandwidth_bytes_per_s"),
        "latency": Field(DURATION, "between nodes, one way", "latency_s"),
        "links": Field(ListOf(LINK), "pairs of pools where the network is not uniform"),
        "graph": Field(ListOf(CABLE), "nodes, switches and cables where it is not uniform inside pools either"),
    },
)
HOST = Record(
    m.HostSpec,
    {
        "dram": Field(BYTES, "memory of a node", "dram_bytes"),
        "pcie": Field(BANDWIDTH, "host to one device", "pcie_bytes_per_s"),
        "nvme": Field(BANDWIDTH, "local storage of a node", "nvme_bytes_per_s"),
    },
)
HARDWARE = Record(
    m.HardwareSpec,
    {
        "pools": Field(ListOf(POOL), "equal devices that may be used", required=True),
        "network": Field(NETWORK, "between nodes"),
        "host": Field(HOST, "the host of a node"),
        "carbon": Field(Quantity(q.GRAMS_PER_KWH, q.parse_grams_per_kwh), "of the electricity", "carbon_g_per_kwh"),
    },
)
