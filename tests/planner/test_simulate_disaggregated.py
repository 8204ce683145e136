"""Plans whose prefill groups hand over to decode groups: a planned one, edited by hand, then simulated and refused."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from capstan.cli import app
from planner.plan import make_plan
from planner.plan_simulation.links import with_handoffs
from planner.plan_simulation.simulate import replica_model, simulate_plan
from planner.simulate import FleetGroup, Workload
from specs.deployment import load_deployment
from specs.errors import InputError
from specs.plan import Plan

# l40s: PCIe of 32 GB/s, of which 85 % are reached, within a node; 25 GB/s, of which 90 %, between nodes
WITHIN, BETWEEN = 0.85 * 32e9, 0.9 * 25e9
TOKEN = 28 * 2 * 8 * 128 * 2  # bytes: layers, keys and values, heads, head size, 16 bit
SPEC = """\
models:
  chat: Qwen/Qwen3-0.6B
hardware:
  pools:
    - {name: l40s, device: l40s, count: 16, price: $1.10/h, rent: gpu}
traffic:
  - name: chat
    trace: {file: t.csv}
    slo: {ttft: {p90: 1s}, tpot: {p90: 60ms}}
choices: {engine: vllm, chat: {replicas: 4, max_num_seqs: 16, max_num_batched_tokens: 512, tensor_parallel: 1}}
"""
HEADER = "arrival_s,prompt_tokens,output_tokens\n"
DECODE = 1  # index of the decode group in `split`


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of four replicas; its requests come one a second, long after the one before has ended."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "t.csv").write_text(HEADER + "".join(f"{second},300,20\n" for second in range(100)))
    (folder / "spec.yaml").write_text(SPEC)
    make_plan(load_deployment(folder / "spec.yaml"), folder).write(folder / "plan.json")
    return folder


def split(folder: Path, prefill: int = 1, decode: int = 1, decode_node: int = 0) -> dict[str, Any]:
    """The plan as an editor would change it: its replicas become `prefill` and `decode` ones, on node 0 if not said."""
    document: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    (group,) = document["groups"]
    (load,) = document["predictions"]["groups"]

    def part(name: str, role: str, first: int, replicas: int, node: int) -> dict[str, Any]:
        slots = [{"slots": [{"node": node, "device": first + index}]} for index in range(replicas)]
        return copy.deepcopy(group) | {"id": name, "role": role, "replicas": replicas, "placement": slots}

    document["groups"] = [
        part("prompts", "prefill", 0, prefill, 0) | {"hands_over_to": "tokens"},
        part("tokens", "decode", prefill if decode_node == 0 else 0, decode, decode_node),
    ]
    document["routes"][0]["group"] = "prompts"
    document["predictions"]["groups"] = [load | {"group": "prompts"}, load | {"group": "tokens"}]
    return document


def behind(document: dict[str, Any], bytes_per_s: float, latency_s: float = 0.0) -> dict[str, Any]:
    """The document with another network between nodes."""
    document["spec"]["hardware"]["network"] |= {"bandwidth_bytes_per_s": bytes_per_s, "latency_s": latency_s}
    return document


def plan_of(document: dict[str, Any]) -> Plan:
    return Plan.model_validate(document)


def linked(document: dict[str, Any], load: Workload | None = None) -> Any:
    """(bytes/s, latency, bytes per token) of the one link, and its sentence."""
    plan = plan_of(document)
    groups = tuple(FleetGroup(group.id, group.replicas, replica_model(plan, group)) for group in plan.groups)
    fleet = with_handoffs(plan, groups, prompts(300) if load is None else load)
    ((name, link),) = fleet.links.items()
    assert name == "prompts to tokens"
    assert [group.role for group in fleet.groups] == ["prefill", "decode"]
    handoff = fleet.groups[0].handoff
    assert handoff is not None
    assert (handoff.group, handoff.link) == ("tokens", name)
    return (link.bytes_per_s, link.latency_s, handoff.bytes_per_token), fleet.notes[0]


def prompts(*tokens: int) -> Workload:
    count = len(tokens)
    nothing = np.zeros(count, np.int64)
    return Workload(("chat",), nothing, np.arange(count) * 1.0, np.array(tokens), nothing + 20)


def test_a_request_alone_takes_its_transfer_and_what_the_other_side_takes_longer(folder: Path) -> None:
    """34.4 MB at 27.2 GB/s, and 10 us, come between the first and the second of 20 tokens. The client has its first one
    after as long again, the second frontend and a step of the decode side."""
    unified = simulate_plan(Plan.read(folder / "plan.json"), folder)["classes"][0]
    plan = plan_of(split(folder))
    found = simulate_plan(plan, folder)
    (served,) = found["classes"]
    transfer_s = 300 * TOKEN / WITHIN + 10e-6
    assert transfer_s == pytest.approx(1.275e-3, rel=1e-3)
    times = replica_model(plan, plan.groups[DECODE]).times
    beyond_s = times.request_s + transfer_s + times.step_s(1, 1, 1, 1, 301, 301, ())
    assert 0.005 < beyond_s < 0.1
    assert served["ttft_s"]["p50"] == pytest.approx(unified["ttft_s"]["p50"] + beyond_s, rel=1e-9)
    assert served["tpot_s"]["p50"] == pytest.approx(unified["tpot_s"]["p50"] + transfer_s / 19, rel=1e-9)
    assert served["e2e_s"]["p50"] == pytest.approx(unified["e2e_s"]["p50"] + beyond_s + transfer_s, rel=1e-9)
    assert f"first tokens reach clients {1e3 * beyond_s:,.1f} ms after their prefill" in " ".join(found["notes"])


def test_requests_tokens_and_bytes_are_conserved_and_exact_is_the_same(folder: Path) -> None:
    random = np.random.default_rng(5)
    load = prompts(*random.integers(1, 900, 300))
    load = replace(
        load, arrival_s=np.sort(random.random(300)) * 10, output_tokens=random.integers(1, 60, 300), window_s=100.0
    )
    found, exact = (
        simulate_plan(plan_of(behind(split(folder, 2, 2, decode_node=1), 1e9)), folder, workload=load, exact=exact)
        for exact in (False, True)
    )
    assert found | {"cpu_s": 0.0} == exact | {"cpu_s": 0.0}
    assert found["refused"] == {}
    (link,) = found["links"]
    several = load.output_tokens > 1  # those of one token are never handed over
    tokens = [sum(group["tokens_by_replica"]) for group in found["groups"]]
    assert tokens == [load.prompt_tokens.sum() + (~several).sum(), load.output_tokens[several].sum()]
    assert (link["link"], link["transfers"]) == ("prompts to tokens", int(several.sum()))
    assert 0 < several.sum() < 300
    assert link["moved_bytes"] == pytest.approx(TOKEN * load.prompt_tokens[several].sum(), rel=1e-9)
    assert link["utilisation"] == pytest.approx(link["moved_bytes"] / (2 * 0.9 * 1e9) / 100.0, rel=1e-9)


def test_a_slow_network_holds_up_tokens_and_first_tokens_by_their_own_transfer(folder: Path) -> None:
    """100 prompts of 34.4 MB in 10 s want 0.34 GB/s: a network of 0.1 GB/s is busy from the first one on."""
    load = replace(prompts(*[300] * 100), arrival_s=np.arange(100) * 0.1, window_s=10.0)
    served = {}
    for bytes_per_s in (0.1e9, 10e9):
        plan = plan_of(behind(split(folder, decode_node=1), bytes_per_s))
        found = simulate_plan(plan, folder, workload=load)
        served[bytes_per_s] = found["classes"][0], found["links"][0]["utilisation"]
    (slow, busy), (fast, idle) = served[0.1e9], served[10e9]
    longer_s = 300 * TOKEN * (1 / 0.09e9 - 1 / 9e9)
    assert slow["ttft_s"]["p50"] - fast["ttft_s"]["p50"] == pytest.approx(longer_s, rel=1e-6)
    assert slow["tpot_s"]["p99"] - fast["tpot_s"]["p99"] > 1.0  # 38 s of transfers for 20 tokens each
    assert 0.95 < busy < 1.0  # from the first prefill on
    assert idle == pytest.approx(100 * 300 * TOKEN / 9e9 / 10, rel=1e-6)


def test_the_links_of_a_node_and_of_the_network_by_hand(folder: Path) -> None:
    """One device to one: the wire; 2 to 3: the sender's two wires together, and the rest of one wire as a latency."""
    within, says = linked(split(folder))
    assert within == pytest.approx((WITHIN, 10e-6, TOKEN))
    assert "over the link between the devices, 27.2 GB/s in all (predicted); 114.7 kB a token, so 1.27 ms" in says
    between, says = linked(split(folder, decode_node=1))
    assert between == pytest.approx((BETWEEN, 15e-6, TOKEN))
    assert "over the network, 22.5 GB/s" in says
    several, _ = linked(split(folder, 2, 3))
    assert several == pytest.approx((2 * WITHIN, 10e-6 + 300 * TOKEN / WITHIN / 2, TOKEN))
    fewer, _ = linked(split(folder, 3, 1))
    assert fewer == pytest.approx((WITHIN, 10e-6, TOKEN))


def test_devices_beyond_the_fast_link_meet_over_pcie(folder: Path) -> None:
    document = split(folder)
    document["devices"]["l40s"] |= {"fast_domain": 1, "link": "nvlink", "link_bytes_per_s": 300e9}
    assert linked(document)[0] == pytest.approx((WITHIN, 10e-6, TOKEN))
    document["devices"]["l40s"] |= {"fast_domain": 2}
    assert linked(document)[0] == pytest.approx((0.85 * 300e9, 10e-6, TOKEN))


def test_the_declared_network_counts(folder: Path) -> None:
    document = behind(split(folder, decode_node=1), 1e9, 0.5)
    assert linked(document)[0] == pytest.approx((0.9e9, 0.5 + 10e-6, TOKEN))


def test_ranks_of_both_sides_decide_what_one_transfer_reaches(folder: Path) -> None:
    """Two ranks send to four: both wires of the sender are used, by one transfer alone as well."""
    document = split(folder)
    for group, ranks in zip(document["groups"], (2, 4), strict=True):
        group["layout"]["tensor_parallel"] = ranks
        first = 0 if ranks == 2 else 2
        group["placement"] = [{"slots": [{"node": 0, "device": first + rank} for rank in range(ranks)]}]
    assert linked(document)[0] == pytest.approx((2 * WITHIN, 10e-6, TOKEN))
    document["groups"][1]["layout"]["tensor_parallel"] = 16  # 8 heads: every rank takes one, so two of each cross
    document["groups"][1]["placement"][0]["slots"] = [{"node": 0, "device": device} for device in range(16)]
    assert linked(document)[0][2] == 2 * TOKEN


def test_windows_are_weighed_at_the_mean_prompt(folder: Path) -> None:
    """Half of the layers keep 128 tokens only."""
    document = split(folder)
    document["architectures"]["chat"] = {
        **document["architectures"]["chat"],
        "use_sliding_window": True,
        "sliding_window": 128,
        "max_window_layers": 14,
        "layer_types": ["full_attention"] * 14 + ["sliding_attention"] * 14,
    }
    whole = 14 * 2 * 8 * 128 * 2
    assert linked(document, prompts(100, 100))[0][2] == pytest.approx(2 * whole)
    assert linked(document, prompts(500, 524))[0][2] == pytest.approx(whole * (1 + 128 / 512))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            [(0, {"hands_over_to": None})],
            r"groups\[0\].hands_over_to: prefill group prompts hands over to none",
        ),
        ([(0, {"hands_over_to": "tokns"})], r"groups\[0\].hands_over_to: 'tokns' is none; .*did you mean 'tokens'"),
        ([(0, {"hands_over_to": "prompts"})], r"groups\[0\].hands_over_to: 'prompts' is none"),
        ([(DECODE, {"role": "unified"})], r"groups\[0\].hands_over_to: 'tokens' is none; expected the id of a decode"),
        ([(DECODE, {"model": "other"})], r"groups\[0\].hands_over_to: 'tokens' is none"),
        ([(DECODE, {"hands_over_to": "tokens"})], r"groups\[1\].hands_over_to: tokens is a decode group, and hands"),
        ([(0, {"role": "unified"})], r"groups\[0\].hands_over_to: prompts is a unified group, and hands nothing over"),
        (
            [(0, {"role": "decode", "hands_over_to": None})],
            r"routes\[0\].group: class chat is routed to prompts",
        ),
    ],
)
def test_roles_that_do_not_fit_are_refused(folder: Path, changes: list[tuple[int, dict[str, Any]]], says: str) -> None:
    document = split(folder)
    for index, change in changes:
        document["groups"][index] |= change
    with pytest.raises(InputError, match=says):
        simulate_plan(plan_of(document), folder)


def test_caches_of_two_types_cannot_be_handed_over(folder: Path) -> None:
    document = split(folder)
    document["groups"][DECODE]["cache"] = document["groups"][DECODE]["cache"] | {"kv_dtype": "fp8"}
    with pytest.raises(InputError, match="prompts keeps its KV cache in bf16, tokens in fp8"):
        simulate_plan(plan_of(document), folder)


def test_nodes_without_a_network_are_named(folder: Path) -> None:
    document = split(folder, decode_node=1)
    document["devices"]["l40s"]["nic_bytes_per_s"] = 0.0
    with pytest.raises(InputError, match=r"groups\[0\].hands_over_to: l40s has no link to other nodes"):
        simulate_plan(plan_of(document), folder)


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def test_the_screen_shows_the_link(folder: Path) -> None:
    edited = folder / "edited.json"
    edited.write_text(json.dumps(split(folder, 2, 2)))
    shown = run("simulate", edited, "--rate", 2, "--timeline", folder / "trace.json", "--fail", "tokens:0@10s-20s")
    assert "link prompts to tokens: " in shown
    assert "GB in all, busy " in shown
    assert "prompts to tokens: over the link between the devices" in shown
    found = json.loads((folder / "trace.json").read_text())
    assert {"prompts", "tokens"} <= {event["args"].get("name") for event in found["traceEvents"] if "args" in event}


def test_other_commands_say_what_they_make_of_it(folder: Path) -> None:
    edited, out = folder / "edited.json", folder / "out"
    edited.write_text(json.dumps(split(folder, 1, 3)))
    assert "chosen: prefill 1 x TP 1 bf16, decode 3 x TP 1 bf16" in run("explain", edited)
    assert "breaks a law" not in run("explain", edited)
    differs = run("diff", folder / "plan.json", edited)
    assert "chat, prefill on l40s" in differs
    assert "hands over to" in differs
    run("export", edited, "--to", "vllm", "-o", out)
    assert (out / "prompts" / "router.sh").is_file()
    shutil.rmtree(out)
    document = split(folder, 1, 3)
    for group in document["groups"]:
        group["engine"] = "capstan"
    edited.write_text(json.dumps(document))
    refused = run("compile", edited, "-o", out, code=2)
    assert "groups.prompts.role: disaggregated groups (prefill) are not compiled in this version" in refused
    assert not out.exists()


def test_a_closed_loop_is_not_split_over_groups(folder: Path) -> None:
    document = split(folder)
    (traffic,) = document["spec"]["traffic"]
    traffic |= {"trace": None, "closed_loop": {"concurrency": 2}}
    traffic |= {
        "prompt_tokens": {"kind": "fixed", "tokens": 300},
        "output_tokens": {"kind": "fixed", "tokens": 9},
    }
    with pytest.raises(InputError, match=r"the plan has 2 replica groups; expected a plan with one group"):
        simulate_plan(plan_of(document), folder)
