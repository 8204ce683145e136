"""What cannot boot, or cannot be kept, is never written: one clear message, exit code 2, an untouched directory."""

import json
from pathlib import Path
from typing import Any

import pytest
from plan_fixture import (
    GIB,
    changed,
    chat_fp8_group,
    chat_group,
    chat_plan,
    code_group,
    device,
    engine,
    fleet_plan,
    packed,
    plan_of,
    with_true_weights,
)

from capstan.commands.export import run_export
from codegen.exports import export_plan, write_export
from codegen.exports.checks import check_plan
from specs.errors import InputError
from specs.plan import Plan, Route

ALL = (Route(request_class="all", group="chat-h100-tp4", share=1.0),)


def chat(**changes: object) -> Plan:
    return plan_of((chat_group(**changes),), ALL)


def code(**changes: object) -> Plan:
    group = code_group(**changes)
    return plan_of((group,), (Route(request_class="all", group=group.id, share=1.0),))


def with_config(**config: object) -> Plan:
    plan = chat()
    return changed(plan, architectures={"chat": plan.architectures["chat"] | config})


def route(*routes: tuple[str, str, float]) -> Plan:
    return changed(chat(), routes=[{"request_class": c, "group": g, "share": s} for c, g, s in routes])


REFUSED = {
    "no groups": (lambda: changed(chat(), groups=[], routes=[]), "no replica groups"),
    "engine capstan": (lambda: chat(engine="capstan"), "compiled, not exported"),
    "engine trtllm": (lambda: chat(engine="trtllm"), "not 'trtllm'"),
    "prefill to nobody": (lambda: chat(role="prefill"), "hands over to none"),
    "decode with arrivals": (lambda: chat(role="decode"), "takes what is handed over"),
    "stages with a role": (
        lambda: chat(role="decode", layout__pipeline_stages=(40, 40), replicas=1, placement=packed(1, 8)),
        "no KV caches over between pipeline stages",
    ),
    "a host tier with a role": (lambda: chat(role="decode", cache__host_blocks=9), "one connector for KV caches"),
    "unknown device": (lambda: chat(device="h200-sxm"), "not among the plan's devices"),
    "cpu": (lambda: changed(chat(), devices={"h100-sxm": device(vendor="cpu").model_dump()}), "vendor 'cpu'"),
    "weights on device": (
        lambda: changed(chat(weights_dtype="fp8"), devices={"h100-sxm": device(weight_dtypes=("bf16",)).model_dump()}),
        "does not support fp8",
    ),
    "kv on device": (
        lambda: changed(chat(cache__kv_dtype="fp8"), devices={"h100-sxm": device(kv_dtypes=("bf16",)).model_dump()}),
        "does not support fp8",
    ),
    "int4 of a plain checkpoint": (lambda: chat(weights_dtype="fp4"), "cannot turn it into fp4"),
    "fp8 checkpoint planned as fp4": (
        lambda: changed(
            with_config(quantization_config={"quant_method": "fp8"}),
            groups=[chat_group(weights_dtype="fp4").model_dump()],
        ),
        "holds fp8 weights, which need more memory",
    ),
    "unknown quantisation": (lambda: with_config(quantization_config={"quant_method": "magic"}), "does not know"),
    "memory": (lambda: chat(cache__memory__activation_bytes=9 * GIB), "the engine would not boot"),
    "weights of another layout": (
        lambda: chat(cache__memory__weights_bytes=30 * GIB),
        "35278831616 bytes of bf16 weights in this layout",
    ),
    "weights of no model": (lambda: with_config(model_type="gpt2"), "describes no model that this version knows"),
    "layout that no weights allow": (
        lambda: chat(layout__tensor_parallel=7, replicas=1, placement=packed(1, 7)),
        "7 does not divide the model's 64",
    ),
    "another device than the pool's": (
        lambda: changed(chat(), spec__hardware__pools=[{"name": "h100", "device": "a100-sxm"}]),
        "pool 'h100' holds 'a100-sxm'",
    ),
    "unknown pool": (lambda: changed(chat(), spec__hardware={"pools": 7}), "has no pool 'h100'"),
    "more than the device": (lambda: chat(cache__memory__available_bytes=81 * GIB), "on a device of"),
    "too many blocks": (lambda: chat(cache__num_blocks=10**6), "left for KV"),
    "longer than the cache": (lambda: chat(limits__max_model_len=16, cache__num_blocks=1), "one block for itself"),
    "longest request": (lambda: chat(cache__num_blocks=2047), r"32768 tokens do not fit the KV cache of 32752"),
    "positions": (lambda: with_config(max_position_embeddings=8192), "more than the model's 8192 positions"),
    "token budget": (lambda: chat(limits__max_num_seqs=4096), r"token budget \(2048\) below max_num_seqs"),
    "unchunked": (lambda: chat(scheduling__chunked_prefill=False), "without chunked prefill"),
    "prefill first": (lambda: chat(scheduling__prefill_policy="prefill_first"), "no prefill_first scheduling"),
    "shortest first": (lambda: chat(scheduling__order="sjf"), "first come, first served, not by sjf"),
    "swap": (lambda: chat(scheduling__preemption="swap"), "there is no swap"),
    "speculation by nobody": (
        lambda: chat(scheduling__speculation={"draft_tokens": 4, "acceptance": 0.6}),
        "does not say who drafts",
    ),
    "heads": (
        lambda: chat(layout__tensor_parallel=6, replicas=1, placement=packed(1, 6)),
        "6 does not divide the model's 64 attention heads",
    ),
    "layers": (lambda: chat(layout__pipeline_stages=(79,)), "hold 79 layers, and the model has 80"),
    "dense data parallel": (
        lambda: chat(layout__attention_data_parallel=2, replicas=1, placement=packed(1, 8)),
        "only for mixtures of experts",
    ),
    "experts of a dense model": (lambda: chat(layout__expert_parallel=4), "no experts"),
    "half the ranks": (
        lambda: code(
            layout={"tensor_parallel": 4, "pipeline_stages": (48,), "expert_parallel": 2},
            replicas=1,
            placement=packed(1, 4),
        ),
        "over all 4 ranks of a stage or over none",
    ),
    "replica missing": (lambda: chat(replicas=4), "3 of 4 replicas are placed"),
    "devices missing": (lambda: chat(placement=packed(3, 3)), "has 3 devices, and the layout needs 4"),
    "device twice": (lambda: chat(placement=packed(1, 4) * 3), "is taken by chat-h100-tp4 replica 0"),
    "group twice": (lambda: plan_of((chat_group(), chat_group()), ALL), "two groups have the id"),
    "route nowhere": (lambda: route(("all", "chat-h100-tp8", 1.0)), "did you mean 'chat-h100-tp4'"),
    "half a class": (lambda: route(("all", "chat-h100-tp4", 0.5)), "add up to 0.5"),
    "no routes": (lambda: route(), "no request would reach a replica"),
    "class of two models": (
        lambda: plan_of(
            (chat_group(), code_group()),
            (
                Route(request_class="all", group="chat-h100-tp4", share=0.5),
                Route(request_class="all", group="code-h100-tp1", share=0.5),
            ),
        ),
        "groups of two models",
    ),
    "undeclared model": (lambda: changed(chat(), spec__models={}), "does not declare the model 'chat'"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("to", ["vllm", "kubernetes"])
def test_a_plan_that_breaks_a_rule_is_refused_by_name(case: str, to: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    path = tmp_path / "plan.json"
    make().write(path)
    with pytest.raises(InputError, match=message) as caught:
        run_export(path, to, tmp_path / "deploy", force=False, json_output=False)
    assert caught.value.exit_code == 2
    assert caught.value.file == str(path)
    assert caught.value.field
    assert not (tmp_path / "deploy").exists()


def test_the_fixtures_themselves_pass() -> None:
    assert check_plan(chat_plan()) == ()
    assert check_plan(fleet_plan()) == ()


def test_another_engine_version_is_said() -> None:
    plan = changed(chat(), engines={"vllm": engine(version="0.11.0").model_dump()})
    assert "0.11.0" in check_plan(plan)[0]


@pytest.mark.parametrize("to", ["trtllm", "ray", "vlm"])
def test_other_targets_are_refused_with_what_exists(to: str) -> None:
    with pytest.raises(InputError, match="vllm or sglang or kubernetes"):
        export_plan(chat(), to)


@pytest.mark.parametrize(("to", "engine"), [("vllm", "sglang"), ("sglang", "vllm")])
def test_a_plan_for_one_engine_is_not_exported_to_another(to: str, engine: str) -> None:
    with pytest.raises(InputError, match=f"planned for {engine}.*`--to {engine}`"):
        export_plan(chat(engine=engine), to)


def test_kubernetes_needs_a_replica_inside_one_machine() -> None:
    plan = chat(placement=packed(3, 4, gpus_per_node=2))
    assert export_plan(plan, "vllm").files
    with pytest.raises(InputError, match="spans 2 machines"):
        export_plan(plan, "kubernetes")


def test_stages_on_unlike_machines_are_exported_to_vllm_only() -> None:
    stages = [{"pool": "h100", "device": "h100-sxm"}, {"pool": "old", "device": "a100"}]
    slots = [{"node": 0, "device": rank} for _ in range(2) for rank in range(2)]

    def plan(**more: Any) -> Plan:
        group = with_true_weights(chat_fp8_group(**{"stages": stages, "placement": [{"slots": slots}], **more}))
        return plan_of((group,), (Route(request_class="all", group=group.id, share=1.0),))

    assert export_plan(plan(), "vllm").files
    with pytest.raises(InputError, match="spans 2 machines"):
        export_plan(plan(), "kubernetes")
    with pytest.raises(InputError, match="sglang is not known to run the stages of one replica on unlike machines"):
        export_plan(plan(engine="sglang"), "sglang")
    uneven = [*slots[:3], {"node": 1, "device": 0}]
    with pytest.raises(InputError, match="spreads over machines unevenly"):
        export_plan(plan(placement=[{"slots": uneven}]), "vllm")
    other = plan()
    told = {**other.spec, "hardware": {"pools": [{"name": "h100", "device": "h100-sxm"}]}}
    with pytest.raises(InputError, match="no pool 'old'"):
        export_plan(other.model_copy(update={"spec": told}), "vllm")


def test_kubernetes_does_not_take_a_local_checkpoint() -> None:
    plan = changed(chat(), spec__models__chat__architecture="./models/llama")
    assert export_plan(plan, "vllm").files
    with pytest.raises(InputError, match="local directory"):
        export_plan(plan, "kubernetes")


def test_vllm_does_not_take_an_uneven_spread() -> None:
    plan = chat(placement=packed(3, 4, first_device=1, gpus_per_node=3))
    with pytest.raises(InputError, match="unevenly"):
        export_plan(plan, "vllm")


def test_a_broken_plan_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(chat().to_json()[:500])
    with pytest.raises(InputError, match="not JSON"):
        run_export(path, "vllm", tmp_path / "deploy", force=False, json_output=False)


class TestDirectory:
    def test_the_same_plan_gives_the_same_bytes(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            write_export(export_plan(fleet_plan(), "kubernetes"), tmp_path / name)
        first, second = (
            {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
            for name in ("one", "two")
        )
        assert first == second
        assert len(first) > 4

    def test_a_second_export_replaces_the_first(self, tmp_path: Path) -> None:
        write_export(export_plan(fleet_plan(), "vllm"), tmp_path / "deploy")
        write_export(export_plan(chat(), "vllm"), tmp_path / "deploy")
        assert (tmp_path / "deploy/chat-h100-tp4/serve.sh").exists()
        assert not (tmp_path / "deploy/code-h100-tp1").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["deploy"]  # no scratch left

    def test_an_empty_directory_is_used(self, tmp_path: Path) -> None:
        write_export(export_plan(chat(), "vllm"), tmp_path)
        assert (tmp_path / "nginx.conf").exists()

    def test_somebody_elses_directory_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(InputError, match="not written by"):
            write_export(export_plan(chat(), "vllm"), tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    def test_an_edited_or_added_file_is_not_lost(self, tmp_path: Path) -> None:
        deploy = tmp_path / "deploy"
        export = export_plan(chat(), "vllm")
        write_export(export, deploy)
        (deploy / "extra.yaml").write_text("mine")
        with pytest.raises(InputError, match=r"other files \(extra.yaml\)"):
            write_export(export, deploy)
        (deploy / "extra.yaml").unlink()
        (deploy / "nginx.conf").write_text("mine")
        with pytest.raises(InputError, match=r"edited since \(nginx.conf\)"):
            write_export(export, deploy)
        assert (deploy / "nginx.conf").read_text() == "mine"

    def test_force_overwrites_what_is_in_the_way_and_nothing_else(self, tmp_path: Path) -> None:
        (tmp_path / "nginx.conf").write_text("mine")
        (tmp_path / "notes.txt").write_text("mine")
        write_export(export_plan(chat(), "vllm"), tmp_path, force=True)
        assert "upstream" in (tmp_path / "nginx.conf").read_text()
        assert (tmp_path / "notes.txt").read_text() == "mine"

    def test_a_file_in_the_place_of_the_directory(self, tmp_path: Path) -> None:
        (tmp_path / "deploy").write_text("mine")
        with pytest.raises(InputError, match="not a directory"):
            write_export(export_plan(chat(), "vllm"), tmp_path / "deploy")

    def test_the_command_prints_one_document(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        fleet_plan().write(tmp_path / "plan.json")
        run_export(tmp_path / "plan.json", "vllm", tmp_path / "deploy", force=False, json_output=True)
        captured = capsys.readouterr()
        document = json.loads(captured.out)
        assert "nginx.conf" in document["files"]
        assert "into FP8 while loading" in captured.err
