"""A plan as commands for vLLM on machines that one logs in to: a script per group, and the router's configuration."""

from __future__ import annotations

import json
from dataclasses import dataclass

from codegen.exports.args import EngineArguments, vllm_arguments, vllm_table
from codegen.exports.directory import Export, render
from codegen.exports.names import safe_name, safe_names
from codegen.exports.router import ClassRoute, Upstream, class_routes, nginx_configuration
from specs.errors import InputError
from specs.plan import Plan, ReplicaGroup, ReplicaPlacement

ROUTER_PORT = 8000
FIRST_REPLICA_PORT = 8100  # each replica of the plan has its own, so that groups may share a machine
FIRST_MASTER_PORT = 29600  # where the ranks of a replica that spans machines meet


@dataclass(frozen=True)
class Launch:
    """One command of one machine: a whole replica, or its part on that machine."""

    replica: int
    node: int
    devices: str  # CUDA_VISIBLE_DEVICES
    address: str  # of the machine
    port: int
    extra: tuple[str, ...]  # words that differ between replicas


def vllm_export(plan: Plan) -> Export:
    """Files of `--to vllm`, for a plan that passed `checks.check_plan`; `InputError` for placements vLLM has not."""
    names = safe_names(group.id for group in plan.groups)
    files: dict[str, str] = {}
    notes: list[str] = []
    upstreams, summaries = [], []
    replica_index = 0
    for group in plan.groups:
        arguments = vllm_arguments(plan, group)
        launches: list[Launch] = []
        for index, placement in enumerate(group.placement):
            launches += _launches(plan, group, arguments, index, placement, replica_index)
            replica_index += 1
        name = names[group.id]
        by_node = {
            node: [launch for launch in launches if launch.node == node]
            for node in sorted({launch.node for launch in launches})
        }
        files[f"{name}/serve.sh"] = render(
            "serve.sh.j2", plan=plan, group=group, arguments=arguments, by_node=by_node, table=vllm_table()
        )
        files[f"{name}/args.json"] = json.dumps(arguments.to_list(), indent=2, ensure_ascii=False) + "\n"
        heads = [launch for launch in launches if "--headless" not in launch.extra]
        upstreams.append(Upstream(name, tuple(f"{launch.address}:{launch.port}" for launch in heads)))
        summaries.append({"group": group, "name": name, "arguments": arguments, "by_node": by_node})
        notes += [f"{group.id}: {note}" for note in arguments.notes]
    routes = class_routes(plan, names)
    files["nginx.conf"] = nginx_configuration(plan, upstreams, routes, port=ROUTER_PORT)
    files["README.md"] = _readme(plan, summaries, routes, notes)
    return Export("vllm", files, tuple(notes))


def machine(plan: Plan, group: ReplicaGroup, node: int) -> str:
    """Host name of a machine of the group's pool; the plan knows machines only by number."""
    machines = {(each.pool, slot.node) for each in plan.groups for replica in each.placement for slot in replica.slots}
    return "127.0.0.1" if len(machines) == 1 else f"{safe_name(group.pool)}-{node}"


def nodes_of(placement: ReplicaPlacement) -> tuple[int, ...]:
    """Machines of a replica in the order of its ranks, each once."""
    return tuple(dict.fromkeys(slot.node for slot in placement.slots))


def _launches(
    plan: Plan, group: ReplicaGroup, arguments: EngineArguments, index: int, placement: ReplicaPlacement, serial: int
) -> list[Launch]:
    """The commands of replica `index` of the group, `serial` of the plan: one per machine, the first one serves."""
    nodes = nodes_of(placement)
    port = FIRST_REPLICA_PORT + serial
    if len(nodes) > 1:
        _refuse_uneven(group, index, placement, nodes)
    launches = []
    for rank, node in enumerate(nodes):
        options: list[tuple[str, str | int | bool]] = [("port", port)] if rank == 0 else []
        if len(nodes) > 1:
            # vLLM's own launch over machines: equal parts, ranks in the order of the machines, the first one serves.
            options += [
                ("distributed-executor-backend", "mp"),
                ("nnodes", len(nodes)),
                ("node-rank", rank),
                ("master-addr", machine(plan, group, nodes[0])),
                ("master-port", FIRST_MASTER_PORT + serial),
            ]
            if rank:
                options.append(("headless", True))
        whole = arguments.with_options(*options)
        extra = tuple(word for words in whole.pairs()[len(arguments.options) :] for word in words)
        devices = ",".join(str(slot.device) for slot in placement.slots if slot.node == node)
        launches.append(Launch(index, node, devices, machine(plan, group, node), port, extra))
    return launches


def _refuse_uneven(group: ReplicaGroup, index: int, placement: ReplicaPlacement, nodes: tuple[int, ...]) -> None:
    """vLLM gives every machine of a replica the same number of consecutive ranks; other placements cannot be kept."""
    share, rest = divmod(len(placement.slots), len(nodes))
    in_order = tuple(node for node in nodes for _ in range(share))
    field = f"groups.{group.id}.placement.{index}"
    if rest or tuple(slot.node for slot in placement.slots) != in_order:
        raise InputError(
            "spreads over machines unevenly: vLLM gives each machine equally many consecutive ranks",
            field=field,
            expected=f"{len(placement.slots)} devices in equal parts, machine after machine",
        )
    if group.layout.attention_data_parallel > 1:
        raise InputError(
            "spreads data-parallel ranks over machines, which this version does not export",
            field=field,
            expected="a replica inside one machine",
        )


def _readme(plan: Plan, summaries: list[dict[str, object]], routes: tuple[ClassRoute, ...], notes: list[str]) -> str:
    return render(
        "vllm-README.md.j2",
        plan=plan,
        summaries=summaries,
        routes=routes,
        notes=notes,
        table=vllm_table(),
        router_port=ROUTER_PORT,
    )
