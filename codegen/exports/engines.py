"""What differs between the engines that plans are exported for: arguments, ranks over machines, handing over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from codegen.exports.args import vllm_arguments
from codegen.exports.arguments import ArgumentTable, EngineArguments, Value, engine_table
from codegen.exports.sglang_args import sglang_arguments
from specs.plan import Plan, ReplicaGroup

Options = tuple[tuple[str, Value], ...]
Environment = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Joint:
    """One machine's part of a replica that spans several: its rank among `machines`, and where the ranks meet."""

    rank: int
    machines: int
    address: str
    port: int


@dataclass(frozen=True)
class Engine:
    """How exports speak to one engine."""

    name: str
    arguments: Callable[[Plan, ReplicaGroup], EngineArguments]
    joint: Callable[[Joint], Options]  # options of a machine's part of a replica
    # (options, environment) of a replica with a role: its own port for the other side, and its address
    handover: Callable[[ReplicaGroup, int, str], tuple[Options, Environment]]

    @property
    def table(self) -> ArgumentTable:
        return engine_table(self.name)


def _vllm_joint(joint: Joint) -> Options:
    """vLLM's own launch over machines: equal parts, ranks in the order of the machines, the first one serves."""
    options: Options = (
        ("distributed-executor-backend", "mp"),
        ("nnodes", joint.machines),
        ("node-rank", joint.rank),
        ("master-addr", joint.address),
        ("master-port", joint.port),
    )
    return (*options, ("headless", True)) if joint.rank else options


def _vllm_handover(group: ReplicaGroup, port: int, address: str) -> tuple[Options, Environment]:
    stated = (("VLLM_NIXL_SIDE_CHANNEL_HOST", address), ("VLLM_NIXL_SIDE_CHANNEL_PORT", str(port)))
    return (), stated if group.role != "unified" else ()


def _sglang_joint(joint: Joint) -> Options:
    return (
        ("nnodes", joint.machines),
        ("node-rank", joint.rank),
        ("dist-init-addr", f"{joint.address}:{joint.port}"),
    )


def _sglang_handover(group: ReplicaGroup, port: int, address: str) -> tuple[Options, Environment]:
    return ((("disaggregation-bootstrap-port", port),) if group.role == "prefill" else ()), ()


ENGINES = {
    "vllm": Engine("vllm", vllm_arguments, _vllm_joint, _vllm_handover),
    "sglang": Engine("sglang", sglang_arguments, _sglang_joint, _sglang_handover),
}
