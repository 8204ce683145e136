"""Plans for SGLang: every field of the plan is an argument of its server, or is refused by name."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from plan_fixture import changed, chat_group, code_group, packed, plan_of, tools_group, with_true_weights
from split_plans import SGLANG, sglang_group, split_plan

from codegen.exports import export_plan, write_export
from codegen.exports.arguments import EngineArguments, engine_table
from codegen.exports.sglang_args import sglang_arguments
from specs.errors import CapstanError, InputError
from specs.plan import Plan, ReplicaGroup, Route

STAND_IN = """#!/usr/bin/env python3
import json, os, sys
if sys.argv[1] == "-c":
    sys.exit(0)
with open(os.environ["RECORDS"], "a") as stream:
    stream.write(json.dumps({"words": sys.argv[1:], "devices": os.environ.get("CUDA_VISIBLE_DEVICES")}) + "\\n")
"""


def read_back(words: list[str]) -> dict[str, Any]:
    """What a parser made from the table understands; anything that it does not know is an error."""
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    kinds = {"int": int, "float": float, "str": str, "enum": str}
    for spec in engine_table("sglang").arguments.values():
        if spec.type == "flag":
            parser.add_argument(f"--{spec.name}", action="store_true")
        else:
            parser.add_argument(f"--{spec.name}", type=kinds[spec.type], choices=spec.values or None)
    return vars(parser.parse_args(words))


def plan_with(group: ReplicaGroup, **changes: Any) -> Plan:
    return plan_of((group,), (Route(request_class="all", group=group.id, share=1.0),), **changes)


def arguments_of(group: ReplicaGroup) -> dict[str, Any]:
    return read_back(sglang_arguments(plan_with(group), group).to_list())


def test_the_table_says_what_each_argument_keeps() -> None:
    table = engine_table("sglang")
    assert table.version == "0.5.9"
    for spec in table.arguments.values():
        assert spec.keeps
        assert spec.source.startswith("https://docs.sglang.io/")
        assert not spec.negatable


def test_limits_and_cache_are_the_plans() -> None:
    group = sglang_group()
    found = arguments_of(group)
    memory = group.cache.memory
    assert found["model_path"] == "meta-llama/Llama-3.1-70B"
    assert (found["tensor_parallel_size"], found["pipeline_parallel_size"]) == (4, 1)
    assert (found["max_running_requests"], found["chunked_prefill_size"], found["max_prefill_tokens"]) == (
        64,
        2048,
        2048,
    )
    assert (found["context_length"], found["page_size"]) == (32768, 16)
    assert found["max_total_tokens"] == group.cache.capacity_tokens
    assert (found["dtype"], found["kv_cache_dtype"], found["schedule_policy"]) == ("bfloat16", "auto", "fcfs")
    assert found["schedule_conservativeness"] == 1.0
    assert (found["disable_radix_cache"], found["enable_mixed_chunk"]) == (True, False)
    # the share is of what is free beside contexts and buffers: no less than weights and cache need
    free = memory.device_bytes - memory.context_bytes - memory.collective_bytes
    needed = memory.weights_bytes + memory.kv_bytes
    assert needed <= found["mem_fraction_static"] * free < needed + 2e-4 * free


def test_other_choices_of_the_plan_are_said() -> None:
    found = arguments_of(
        sglang_group(
            cache__prefix_caching=True,
            cache__kv_dtype="fp8",
            scheduling__prefill_policy="mixed_chunked",
            scheduling__output_reserve=0.35,
            weights_dtype="fp8",
        )
    )
    assert (found["disable_radix_cache"], found["enable_mixed_chunk"]) == (False, True)
    assert (found["quantization"], found["kv_cache_dtype"]) == ("fp8", "fp8_e4m3")
    assert found["schedule_conservativeness"] == 0.5


def test_limits_of_one_attention_rank_are_stated_for_all() -> None:
    layout = {"tensor_parallel": 2, "attention_data_parallel": 2, "expert_parallel": 4, "pipeline_stages": (48,)}
    group = code_group(layout=layout, replicas=1, placement=packed(1, 4), **SGLANG)
    found = arguments_of(group)
    assert (found["tensor_parallel_size"], found["data_parallel_size"], found["expert_parallel_size"]) == (4, 2, 4)
    assert found["enable_dp_attention"]
    assert (found["max_running_requests"], found["chunked_prefill_size"]) == (2 * 128, 2 * 8192)
    assert found["max_total_tokens"] == group.cache.capacity_tokens


def test_stages_are_cut_as_planned() -> None:
    group = sglang_group(layout__pipeline_stages=(41, 39), replicas=1, placement=packed(1, 8))
    made = sglang_arguments(plan_with(group), group)
    assert dict(made.environment) == {"SGLANG_PP_LAYER_PARTITION": "41,39"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scheduling__order": "sjf"}, "first come, first served, not by sjf"),
        ({"scheduling__preemption": "swap"}, "there is no swap"),
        ({"scheduling__batch_wait_steps": 3}, "does not wait for company"),
        ({"cache__host_blocks": 10}, "host"),
        ({"scheduling__prefill_policy": "decode_first"}, "no decode_first scheduling"),
    ],
)
def test_what_sglang_has_no_argument_for_is_refused_by_name(changes: dict[str, Any], says: str) -> None:
    group = sglang_group(**changes)
    with pytest.raises(InputError, match=says) as caught:
        export_plan(plan_with(group), "sglang")
    assert caught.value.field.startswith(f"groups.{group.id}.")


def test_unequal_layers_are_refused() -> None:
    group = tools_group(**SGLANG)
    with pytest.raises(InputError, match="unequal KV"):
        export_plan(plan_with(group), "sglang")


def test_placed_experts_are_refused() -> None:
    experts = {"slots_per_rank": 128, "physical_to_logical": [list(range(128))] * 48, "skew": 1.2, "skew_bound": 1.1}
    group = code_group(experts=experts, **SGLANG)
    with pytest.raises(InputError, match="places experts by measured loads"):
        export_plan(plan_with(group), "sglang")


def test_a_flag_is_never_negated() -> None:
    with pytest.raises(CapstanError, match="no negative form"):
        EngineArguments("model", (("disable-radix-cache", False),), engine="sglang")


def run(script: Path, node: int, folder: Path) -> list[dict[str, Any]]:
    """The commands that a script starts on a machine, with a stand-in for Python."""
    stand_in = folder / "bin" / "python3"
    stand_in.parent.mkdir(exist_ok=True)
    stand_in.write_text(STAND_IN.replace("/usr/bin/env python3", sys.executable))
    stand_in.chmod(0o755)
    records = folder / "records"
    environment = os.environ | {"PATH": f"{stand_in.parent}:{os.environ['PATH']}", "RECORDS": str(records)}
    subprocess.run([script, str(node)], env=environment, check=True, timeout=20)
    found = [json.loads(line) for line in records.read_text().splitlines()]
    records.unlink()
    return sorted(found, key=lambda record: str(record["devices"]))  # they start at once


def test_the_scripts_start_every_replica_of_a_machine(tmp_path: Path) -> None:
    plan = plan_with(sglang_group())
    write_export(export_plan(plan, "sglang"), tmp_path / "deploy")
    started = run(tmp_path / "deploy" / "chat-h100-tp4" / "serve.sh", 0, tmp_path)
    assert [record["devices"] for record in started] == ["0,1,2,3", "4,5,6,7"]
    for record, port in zip(started, (8100, 8101), strict=True):
        assert record["words"][:2] == ["-m", "sglang.launch_server"]
        found = read_back(record["words"][2:])
        assert (found["port"], found["host"]) == (port, "0.0.0.0")


def test_a_replica_over_two_machines_meets_on_the_first(tmp_path: Path) -> None:
    group = sglang_group(layout__pipeline_stages=(40, 40), replicas=1, placement=packed(1, 8, gpus_per_node=4))
    group = with_true_weights(group)
    write_export(export_plan(plan_with(group), "sglang"), tmp_path / "deploy")
    script = tmp_path / "deploy" / "chat-h100-tp4" / "serve.sh"
    parts = [read_back(run(script, node, tmp_path)[0]["words"][2:]) for node in (0, 1)]
    assert [part["node_rank"] for part in parts] == [0, 1]
    assert {part["nnodes"] for part in parts} == {2}
    assert {part["dist_init_addr"] for part in parts} == {"h100-0:29600"}
    assert [part["port"] for part in parts] == [8100, None]


def test_sides_are_told_their_role_and_each_other(tmp_path: Path) -> None:
    plan = split_plan("sglang")
    export = export_plan(plan, "sglang")
    write_export(export, tmp_path / "deploy")
    prefill = [read_back(r["words"][2:]) for r in run(tmp_path / "deploy/chat-prefill/serve.sh", 0, tmp_path)]
    (decode,) = [read_back(r["words"][2:]) for r in run(tmp_path / "deploy/chat-decode/serve.sh", 1, tmp_path)]
    assert {item["disaggregation_mode"] for item in prefill} == {"prefill"}
    assert decode["disaggregation_mode"] == "decode"
    assert {item["disaggregation_transfer_backend"] for item in (*prefill, decode)} == {"nixl"}
    assert [item["disaggregation_bootstrap_port"] for item in prefill] == [5600, 5728]  # one for each on the machine
    assert {(item["disaggregation_decode_tp"], item["disaggregation_decode_dp"]) for item in prefill} == {(4, 1)}
    assert decode["disaggregation_decode_tp"] is None  # SGLang refuses it there
    router = export.files["chat-prefill/router.sh"].splitlines()[-1]
    assert router == (
        "exec python3 -m sglang_router.launch_router --pd-disaggregation --prefill http://h100-0:8100 5600 "
        "--prefill http://h100-0:8101 5728 --decode http://h100-1:8102 --policy power_of_two --host 0.0.0.0 --port 8050"
    )
    assert "server 127.0.0.1:8050;" in export.files["nginx.conf"]
    assert "h100-1" not in export.files["nginx.conf"]
    in_turn = export_plan(changed(plan, router="round_robin"), "sglang").files["chat-prefill/router.sh"]
    assert "--policy round_robin" in in_turn


def test_the_readme_names_every_argument_and_its_promise() -> None:
    plan = split_plan("sglang")
    readme = export_plan(plan, "sglang").files["README.md"]
    assert 'pip install "sglang[all]==0.5.9"' in readme
    assert "| chat-prefill | `chat-prefill/router.sh` | 8050 |" in readme
    for group in plan.groups:
        for words in sglang_arguments(plan, group).pairs():
            assert f"| `{' '.join(words)}` | " in readme


def test_a_plan_of_both_engines_goes_to_kubernetes_only() -> None:
    groups = (chat_group(), code_group(**SGLANG))
    routes = (
        Route(request_class="talk", group="chat-h100-tp4", share=1.0),
        Route(request_class="write", group="code-h100-tp1", share=1.0),
    )
    plan = plan_of(groups, routes)
    for to, other in (("vllm", "sglang"), ("sglang", "vllm")):
        with pytest.raises(InputError, match=f"planned for {other}") as refused:
            export_plan(plan, to)
        assert "`--to kubernetes`" in (refused.value.expected or "")
        assert f"--to {other}" not in (refused.value.expected or "")  # which refuses the plan as well
    files = export_plan(plan, "kubernetes").files
    assert "vllm/vllm-openai:v0.24.0" in files["chat-h100-tp4.yaml"]
    assert "lmsysorg/sglang:v0.5.9" in files["code-h100-tp1.yaml"]
    assert "vllm 0.24.0 and sglang 0.5.9" in files["README.md"]
