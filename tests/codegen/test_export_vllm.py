"""The scripts start what the plan says, where the plan says: they are run here with a stand-in for the engine."""

import json
import os
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from plan_fixture import (
    chat_fp8_group,
    chat_group,
    chat_plan,
    fleet_plan,
    packed,
    plan_of,
    with_true_weights,
)

from codegen.exports import export_plan, write_export
from codegen.exports.args import vllm_arguments
from specs.plan import Plan, Route

STAND_IN = """#!/usr/bin/env python3
import json, os, sys
record = {"words": sys.argv[1:], "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
          "stages": os.environ.get("VLLM_PP_LAYER_PARTITION")}
with open(os.environ["RECORDS"], "a") as stream:
    stream.write(json.dumps(record) + "\\n")
sys.exit(int(os.environ.get("STATUS", "0")))
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "vllm").write_text(STAND_IN)
    (folder / "vllm").chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "RECORDS": str(tmp_path / "records")}


def written(plan: Plan, tmp_path: Path) -> Path:
    write_export(export_plan(plan, "vllm"), tmp_path / "deploy")
    return tmp_path / "deploy"


def run(script: Path, *words: str, environment: dict[str, str]) -> tuple[int, str, list[dict[str, object]]]:
    done = subprocess.run([script, *words], env=environment, capture_output=True, text=True, timeout=20)
    records = Path(environment["RECORDS"])
    lines = records.read_text().splitlines() if records.exists() else []
    records.unlink(missing_ok=True)
    return done.returncode, done.stderr, [json.loads(line) for line in lines]


def test_every_script_is_valid_bash(tmp_path: Path) -> None:
    scripts = sorted(written(fleet_plan(), tmp_path).rglob("*.sh"))
    assert len(scripts) == 3
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
        assert "set -euo pipefail" in script.read_text()


def test_all_machines_together_start_every_replica_once(tmp_path: Path, stand_in: dict[str, str]) -> None:
    plan = fleet_plan()
    deploy = written(plan, tmp_path)
    ports: Counter[str] = Counter()
    for group in plan.groups:
        expected = vllm_arguments(plan, group)
        places = {
            (slots.slots[0].node, ",".join(str(slot.device) for slot in slots.slots)) for slots in group.placement
        }
        started = set()
        for node in {node for node, _ in places}:
            status, _, records = run(deploy / group.id / "serve.sh", str(node), environment=stand_in)
            assert status == 0
            for record in records:
                words = record["words"]
                assert words[:-2] == ["serve", *expected.to_list()]
                assert words[-2] == "--port"
                ports[words[-1]] += 1
                assert record["stages"] == dict(expected.environment).get("VLLM_PP_LAYER_PARTITION")
                started.add((node, record["devices"]))
        assert started == places
        assert json.loads((deploy / group.id / "args.json").read_text()) == expected.to_list()
    assert sum(ports.values()) == len(ports) == 8  # every replica of the plan has a port of its own


def test_wrong_machine_and_missing_number_are_usage_errors(tmp_path: Path, stand_in: dict[str, str]) -> None:
    script = written(chat_plan(), tmp_path) / "chat-h100-tp4/serve.sh"
    for words in ((), ("7",), ("0", "1")):
        status, message, records = run(script, *words, environment=stand_in)
        assert (status, records) == (2, [])
        assert "number of this machine in its pool: 0 1" in message


def test_a_replica_that_fails_shows_in_the_exit_status(tmp_path: Path, stand_in: dict[str, str]) -> None:
    script = written(chat_plan(), tmp_path) / "chat-h100-tp4/serve.sh"
    status, _, records = run(script, "0", environment=stand_in | {"STATUS": "3"})
    assert (status, len(records)) == (3, 2)


DRAINING = """#!/usr/bin/env python3
import os, signal, sys, time
def drain(*_):
    time.sleep(1)
    open(f"{os.environ['RECORDS']}-ended-{os.getpid()}", "w").close()
    sys.exit(5)
signal.signal(signal.SIGTERM, drain)
open(f"{os.environ['RECORDS']}-started-{os.getpid()}", "w").close()
time.sleep(60)
"""


def test_a_stopped_script_ends_after_its_replicas_have(tmp_path: Path, stand_in: dict[str, str]) -> None:
    (tmp_path / "bin" / "vllm").write_text(DRAINING)
    script = written(chat_plan(), tmp_path) / "chat-h100-tp4/serve.sh"
    with subprocess.Popen([script, "0"], env=stand_in) as process:
        while len(list(tmp_path.glob("records-started-*"))) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        assert process.wait(timeout=30) == 5
    assert len(list(tmp_path.glob("records-ended-*"))) == 2


def test_a_replica_over_two_machines_has_one_server(tmp_path: Path, stand_in: dict[str, str]) -> None:
    layout = {"tensor_parallel": 4, "pipeline_stages": (40, 40)}
    group = with_true_weights(chat_group(layout=layout, replicas=2, placement=packed(2, 8, gpus_per_node=4)))
    plan = plan_of((group,), (Route(request_class="all", group=group.id, share=1.0),))
    script = written(plan, tmp_path) / "chat-h100-tp4/serve.sh"
    parts = {}
    for node in range(4):
        _, _, records = run(script, str(node), environment=stand_in)
        (record,) = records
        parts[node] = record
        assert record["devices"] == "0,1,2,3"
    options = {node: dict(zip(part["words"], part["words"][1:], strict=False)) for node, part in parts.items()}
    for node, option in options.items():
        assert (option["--nnodes"], option["--node-rank"]) == ("2", str(node % 2))
        assert option["--master-addr"] == f"h100-{node - node % 2}"
        assert ("--headless" in parts[node]["words"]) is (node % 2 == 1)
        assert ("--port" in option) is (node % 2 == 0)
    assert options[0]["--master-port"] == options[1]["--master-port"] != options[2]["--master-port"]
    router = (script.parents[1] / "nginx.conf").read_text()
    assert "server h100-0:8100;" in router
    assert "server h100-2:8101;" in router
    assert "h100-1:" not in router
    rows = {
        row.split("`")[1]: row
        for row in (script.parents[1] / "README.md").read_text().splitlines()
        if "serve.sh" in row
    }
    assert rows["h100-0"].endswith("| 8100 |")
    assert rows["h100-1"].endswith("| nothing: a part of a replica |")


def over_two_pools() -> Plan:
    """Two replicas with a stage of two ranks in each of two pools, all on the first nodes of four devices."""
    slots = [[{"node": 0, "device": first + rank} for _ in range(2) for rank in range(2)] for first in (0, 2)]
    group = with_true_weights(
        chat_fp8_group(
            stages=[{"pool": "h100", "device": "h100-sxm"}, {"pool": "old", "device": "a100"}],
            replicas=2,
            placement=[{"slots": each} for each in slots],
        )
    )
    return plan_of((group,), (Route(request_class="all", group=group.id, share=1.0),))


def test_a_replica_over_two_pools_has_a_part_on_a_machine_of_each(tmp_path: Path, stand_in: dict[str, str]) -> None:
    """Machines of several pools are told their pool beside their number: both are number 0 here."""
    script = written(over_two_pools(), tmp_path) / "chat-h100-fp8/serve.sh"
    found = {}
    for place in ("h100-0", "old-0"):
        _, _, records = run(script, place, environment=stand_in)
        found[place] = sorted(records, key=lambda record: record["devices"])
        assert [record["devices"] for record in found[place]] == ["0,1", "2,3"]
        assert {record["stages"] for record in found[place]} == {"41,39"}
    for first, second in zip(found["h100-0"], found["old-0"], strict=True):
        head, tail = (dict(zip(part["words"], part["words"][1:], strict=False)) for part in (first, second))
        assert (head["--node-rank"], tail["--node-rank"]) == ("0", "1")
        assert head["--nnodes"] == tail["--nnodes"] == "2"
        assert head["--master-addr"] == tail["--master-addr"] == "h100-0"
        assert head["--master-port"] == tail["--master-port"]
        assert ("--headless" in first["words"], "--headless" in second["words"]) == (False, True)
    ports = {record["words"][record["words"].index("--master-port") + 1] for record in found["h100-0"]}
    assert len(ports) == 2
    readme = (script.parents[1] / "README.md").read_text()
    assert "`chat-h100-fp8/serve.sh old-0`" in readme
    assert "on h100-sxm and a100" in readme
    assert "machines of several pools" in readme


def test_names_are_quoted_wherever_they_go(tmp_path: Path, stand_in: dict[str, str]) -> None:
    """A group, a pool and a class may be called anything; a shell and a path must not mind."""
    odd = 'it\'s $(touch pwned) `x`; "Ä"\n../up'
    group = chat_group(id=odd, pool=odd)
    plan = plan_of((group,), (Route(request_class=odd, group=odd, share=1.0),), name=odd)
    deploy = written(plan, tmp_path)
    (script,) = deploy.rglob("serve.sh")
    assert script.parents[1] == deploy
    status, _, records = run(script, "0", environment=stand_in)
    assert (status, len(records)) == (0, 2)
    assert not (Path.cwd() / "pwned").exists()
    assert not (deploy / "pwned").exists()


def test_the_readme_names_every_argument_and_its_promise() -> None:
    plan = fleet_plan()
    readme = export_plan(plan, "vllm").files["README.md"]
    for group in plan.groups:
        for words in vllm_arguments(plan, group).pairs():
            assert f"| `{' '.join(words)}` | " in readme
    assert "http://ROUTER:8000/conversation/v1" in readme
    assert "`code-h100-tp1/serve.sh 2`" in readme
