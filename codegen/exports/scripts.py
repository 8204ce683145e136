"""A plan as commands for machines that one logs in to: a script per group, and the routers' configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from codegen.exports.arguments import EngineArguments
from codegen.exports.directory import Export, render
from codegen.exports.engines import ENGINES, Engine, Environment, Joint
from codegen.exports.names import safe_name, safe_names
from codegen.exports.router import ClassRoute, Upstream, class_routes, nginx_configuration
from specs.errors import InputError
from specs.plan import Plan, ReplicaGroup, ReplicaPlacement

ROUTER_PORT = 8000
FIRST_REPLICA_PORT = 8100  # each replica of the plan has its own, so that groups may share a machine
FIRST_MASTER_PORT = 29600  # where the ranks of a replica that spans machines meet
FIRST_HANDOVER_PORT = 8050  # of the routers between prefill and decode replicas, beside the router of all classes
FIRST_SIDE_PORT = 5600  # where a replica with a role answers the other side; vLLM takes some from there on
SIDE_PORTS = 32
HANDOVER = "handover.py"


@dataclass(frozen=True)
class Launch:
    """One command of one machine: a whole replica, or its part on that machine."""

    replica: int
    place: str  # what the script is told where it runs
    devices: str  # CUDA_VISIBLE_DEVICES
    address: str  # of the machine
    port: int
    side_port: int  # where the other side finds a replica with a role
    serves: bool
    extra: tuple[str, ...]  # words that differ between replicas
    environment: Environment = ()


@dataclass(frozen=True)
class Started:
    """A group with its commands, by machine."""

    group: ReplicaGroup
    name: str
    arguments: EngineArguments
    launches: tuple[Launch, ...]

    @property
    def by_node(self) -> dict[str, list[Launch]]:
        """By what the group's script is told on a machine: its number, or its pool and its number."""
        nodes = {node for replica in self.group.placement for node in nodes_of(self.group, replica)}
        pools = list(self.group.gpus_by_pool)
        places = [place_of(self.group, *node) for node in sorted(nodes, key=lambda node: (pools.index(node[0]), node))]
        return {place: [launch for launch in self.launches if launch.place == place] for place in places}

    @property
    def pools(self) -> str:
        """`"old"`, or `"old" and "new"`."""
        return " and ".join(f'"{pool}"' for pool in self.group.gpus_by_pool)

    @property
    def devices(self) -> str:
        """Kinds of devices, in the order of the stages."""
        return " and ".join(dict.fromkeys(stage.device for stage in self.group.machines))

    @property
    def servers(self) -> list[Launch]:
        return [launch for launch in self.launches if launch.serves]


def scripts_export(plan: Plan, engine: Engine) -> Export:
    """Files of `--to vllm` and `--to sglang`, for a plan that passed `checks.check_plan`.

    `InputError` for placements that the engine has not.
    """
    names = safe_names(group.id for group in plan.groups)
    started = _started(plan, engine, names)
    files: dict[str, str] = {}
    for item in started:
        files[f"{item.name}/serve.sh"] = render("serve.sh.j2", plan=plan, started=item, table=engine.table)
        files[f"{item.name}/args.json"] = json.dumps(item.arguments.to_list(), indent=2, ensure_ascii=False) + "\n"
    handovers = _handovers(plan, engine, started)
    for group_id, words in handovers.items():
        group = plan.group(group_id)
        files[f"{names[group_id]}/router.sh"] = render("router.sh.j2", plan=plan, group=group, words=words)
    if handovers and engine.name == "vllm":
        files[HANDOVER] = handover_source()
    routes = class_routes(plan, names)
    ports = {group: FIRST_HANDOVER_PORT + index for index, group in enumerate(handovers)}
    upstreams = [
        Upstream(item.name, _addresses(item, ports.get(item.group.id)))
        for item in started
        if item.group.role != "decode"
    ]
    files["nginx.conf"] = nginx_configuration(plan, upstreams, routes, port=ROUTER_PORT)
    notes = [f"{item.group.id}: {note}" for item in started for note in item.arguments.notes]
    notes += [*handover_notes(plan, engine), *stage_notes(plan)]
    files["README.md"] = _readme(plan, engine, started, {names[each]: ports[each] for each in handovers}, routes, notes)
    return Export(engine.name, files, tuple(notes))


def _started(plan: Plan, engine: Engine, names: dict[str, str]) -> list[Started]:
    started, serial = [], 0
    for group in plan.groups:
        arguments = engine.arguments(plan, group)
        launches: list[Launch] = []
        for index, placement in enumerate(group.placement):
            launches += _launches(plan, engine, group, arguments, index, placement, serial)
            serial += 1
        started.append(Started(group, names[group.id], arguments, tuple(launches)))
    return started


def _addresses(item: Started, handover_port: int | None) -> tuple[str, ...]:
    """What the router of all classes sends to: replicas, or the router between two sides."""
    if handover_port is not None:
        return (f"127.0.0.1:{handover_port}",)
    return tuple(f"{launch.address}:{launch.port}" for launch in item.servers)


def _handovers(plan: Plan, engine: Engine, started: list[Started]) -> dict[str, list[str]]:
    """By prefill group: the command of the router between it and its decode group."""
    found: dict[str, list[str]] = {}
    for item in started:
        if item.group.hands_over_to is None:
            continue
        other = next(each for each in started if each.group.id == item.group.hands_over_to)
        prefill = [(f"http://{launch.address}:{launch.port}", str(launch.side_port)) for launch in item.servers]
        decode = [f"http://{launch.address}:{launch.port}" for launch in other.servers]
        port = FIRST_HANDOVER_PORT + len(found)
        found[item.group.id] = handover_command(engine, plan, prefill, decode, port, f"../{HANDOVER}")
    return found


def handover_command(
    engine: Engine, plan: Plan, prefill: list[tuple[str, str]], decode: list[str], port: int, script: str
) -> list[str]:
    """Words that start a router between two sides. `prefill`: address and side port of each replica."""
    in_turn = plan.router == "round_robin"
    if engine.name == "vllm":
        words = ["python3", script, "--port", str(port), "--prefill", *(url for url, _ in prefill)]
        return [*words, "--decode", *decode, *(["--in-turn"] if in_turn else [])]
    words = ["python3", "-m", "sglang_router.launch_router", "--pd-disaggregation"]
    for url, side_port in prefill:
        words += ["--prefill", url, side_port]
    for url in decode:
        words += ["--decode", url]
    policy = "round_robin" if in_turn else "power_of_two"
    return [*words, "--policy", policy, "--host", "0.0.0.0", "--port", str(port)]


def handover_source() -> str:
    """The router between prefill and decode replicas of vLLM."""
    return Path(__file__).with_name(HANDOVER).read_text(encoding="utf-8")


def handover_notes(plan: Plan, engine: Engine) -> list[str]:
    """What to know of groups that hand over, for the reader of an export."""
    if not any(group.role == "prefill" for group in plan.groups):
        return []
    notes = [
        "KV caches cross by NIXL (`pip install nixl`), over what UCX finds: only with RDMA, or NVLink inside a "
        "machine, do they cross as fast as the plan says.",
        "Both sides have to use one attention backend; devices of unlike generations may choose two.",
    ]
    if engine.name == "sglang":
        notes.append(
            "Between the sides stands SGLang's router (`pip install sglang-router`). Of the plan's router, "
            f"{plan.router}, it keeps "
            + (
                "all."
                if plan.router == "round_robin"
                else "the nearest that it has: the emptier of two replicas drawn."
            )
        )
    else:
        notes.append(
            "handover.py between the sides is one Python process; its own time per request is not in the plan."
        )
    return notes


def stage_notes(plan: Plan) -> list[str]:
    """What to know of replicas whose stages stand on unlike machines."""
    if not any(group.stages for group in plan.groups):
        return []
    return [
        "Stages of one replica stand on machines of several pools: start the group's script on each of them, with one "
        "version of the engine and one checkpoint. Hidden states cross by NCCL: set NCCL_SOCKET_IFNAME where machines "
        "have several networks.",
        "Every stage chooses its own attention backend, by its device; the number of KV blocks is stated, so that it "
        "is the same in all stages.",
    ]


def machine(plan: Plan, pool: str, node: int) -> str:
    """Host name of a machine of a pool; the plan knows machines only by number."""
    machines = {node for group in plan.groups for replica in group.placement for node in nodes_of(group, replica)}
    return "127.0.0.1" if len(machines) == 1 else f"{safe_name(pool)}-{node}"


def nodes_of(group: ReplicaGroup, placement: ReplicaPlacement) -> tuple[tuple[str, int], ...]:
    """Machines (pool, number) of a replica in the order of its ranks, each once."""
    return tuple(dict.fromkeys((pool, slot.node) for pool, slot in group.places(placement)))


def place_of(group: ReplicaGroup, pool: str, node: int) -> str:
    """What the group's script calls a machine: its number, with the pool where the group stands in several."""
    return f"{safe_name(pool)}-{node}" if group.stages else str(node)


def _launches(
    plan: Plan,
    engine: Engine,
    group: ReplicaGroup,
    arguments: EngineArguments,
    index: int,
    placement: ReplicaPlacement,
    serial: int,
) -> list[Launch]:
    """The commands of replica `index` of the group, `serial` of the plan: one per machine, the first one serves."""
    nodes = nodes_of(group, placement)
    port = FIRST_REPLICA_PORT + serial
    side_port = FIRST_SIDE_PORT + SIDE_PORTS * placement.slots[0].device
    if len(nodes) > 1:
        _refuse_uneven(engine, group, index, placement, nodes)
    launches = []
    for rank, (pool, node) in enumerate(nodes):
        address = machine(plan, pool, node)
        own, environment = engine.handover(group, side_port, address)
        options = [*([("port", port)] if rank == 0 else []), *own]
        if len(nodes) > 1:
            joint = Joint(rank, len(nodes), machine(plan, *nodes[0]), FIRST_MASTER_PORT + serial)
            options += engine.joint(joint)
        whole = arguments.with_options(*options)
        extra = tuple(word for words in whole.pairs()[len(arguments.options) :] for word in words)
        own_slots = (slot for name, slot in group.places(placement) if (name, slot.node) == (pool, node))
        devices = ",".join(str(slot.device) for slot in own_slots)
        place = place_of(group, pool, node)
        launches.append(Launch(index, place, devices, address, port, side_port, rank == 0, extra, environment))
    return launches


def _refuse_uneven(
    engine: Engine, group: ReplicaGroup, index: int, placement: ReplicaPlacement, nodes: tuple[tuple[str, int], ...]
) -> None:
    """Engines give every machine of a replica the same number of consecutive ranks; others cannot be kept."""
    share, rest = divmod(len(placement.slots), len(nodes))
    in_order = tuple(node for node in nodes for _ in range(share))
    field = f"groups.{group.id}.placement.{index}"
    if rest or tuple((pool, slot.node) for pool, slot in group.places(placement)) != in_order:
        raise InputError(
            f"spreads over machines unevenly: {engine.name} gives each machine equally many consecutive ranks",
            field=field,
            expected=f"{len(placement.slots)} devices in equal parts, machine after machine",
        )
    if engine.name == "vllm" and group.layout.attention_data_parallel > 1:
        raise InputError(
            "spreads data-parallel ranks over machines, which this version does not export",
            field=field,
            expected="a replica inside one machine",
        )


def _readme(
    plan: Plan,
    engine: Engine,
    started: list[Started],
    handovers: dict[str, int],
    routes: tuple[ClassRoute, ...],
    notes: list[str],
) -> str:
    return render(
        "scripts-README.md.j2",
        plan=plan,
        started=started,
        handovers=handovers,
        routes=routes,
        notes=notes,
        table=engine.table,
        router_port=ROUTER_PORT,
    )


SCRIPTS: dict[str, Callable[[Plan], Export]] = {
    name: partial(scripts_export, engine=engine) for name, engine in ENGINES.items()
}
