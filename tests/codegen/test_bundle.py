"""What `compile_plan` writes: the plan's numbers, hashes, no trace of time or place, one clear error per refusal."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from plan_fixture import changed, chat_group, chat_plan, device, plan_of

from codegen.bundle import compile_plan
from codegen.bundle_directory import write_directory
from specs.bundle import Bundle, ModelSource, read_runtime_config, verify_bundle
from specs.errors import InputError, NotHonouredError
from specs.kernels import TARGETS
from specs.plan import Plan, Route
from specs.program import ProgramManifest

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "torch_dtype": "float32",
}


def tiny_plan(**group: Any) -> Plan:
    """The tiny model on one CPU, engine capstan; `group` changes the replica group."""
    plan = chat_plan(
        engine="capstan",
        device="cpu",
        id="chat-cpu",
        layout__tensor_parallel=1,
        layout__pipeline_stages=(2,),
        weights_dtype="fp32",
        cache__kv_dtype="fp32",
        **group,
    )
    return changed(
        plan,
        architectures={"chat": TINY},
        spec={"models": {"chat": {"architecture": "tiny"}}},
        devices={"cpu": device("cpu", vendor="cpu", target="cpu", multiprocessors=16).model_dump()},
    )


def with_group(plan: Plan, **fields: Any) -> Plan:
    return changed(plan, groups=[changed(plan.groups[0], **fields).model_dump()])


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_cpu_bundle_holds_the_torch_program_and_the_numbers_of_the_plan(tmp_path: Path) -> None:
    plan = tiny_plan()
    report = compile_plan(plan, tmp_path / "bundle", model_sources={"chat": ModelSource(kind="made", seed=3)})
    files = set(contents(tmp_path / "bundle"))
    group = {"runtime.json", "config.json", "program_torch.py", "program_torch.json"}
    assert files == {"manifest.json", "plan.json", "resources.json", "resources.md"} | {
        f"chat-cpu/{one}" for one in group
    }
    folder, config = read_runtime_config(tmp_path / "bundle")
    assert folder == tmp_path / "bundle" / "chat-cpu"
    planned = plan.groups[0]
    assert (config.limits, config.cache, config.scheduling, config.layout) == (
        planned.limits,
        planned.cache,
        planned.scheduling,
        planned.layout,
    )
    assert config.targets == ("cpu",)
    assert config.source == ModelSource(kind="made", seed=3)
    assert config.triton_program is None
    assert ProgramManifest.read(folder / config.torch_program).block_size_tokens == planned.cache.block_size_tokens
    assert json.loads((folder / "config.json").read_text()) == TINY
    assert Plan.read(tmp_path / "bundle" / "plan.json") == plan
    assert report.manifest == verify_bundle(tmp_path / "bundle")


def test_the_same_plan_gives_the_same_bytes_wherever_it_is_written(tmp_path: Path) -> None:
    for name in ("one", "else/where"):
        compile_plan(tiny_plan(), tmp_path / name)
    assert contents(tmp_path / "one") == contents(tmp_path / "else" / "where")
    assert not any(str(tmp_path).encode() in content for content in contents(tmp_path / "one").values())


@needs_triton
def test_a_gpu_bundle_holds_sources_binaries_and_what_they_take(tmp_path: Path) -> None:
    plan = tiny_plan()
    started = time.monotonic()
    report = compile_plan(plan, tmp_path / "bundle", ["sm_90", "gfx942", "cpu"], cache=tmp_path / "cache")
    first_s = time.monotonic() - started
    files = contents(tmp_path / "bundle")
    folder, config = read_runtime_config(tmp_path / "bundle", "chat-cpu")
    assert config.targets == ("sm_90", "gfx942", "cpu")
    manifest = ProgramManifest.read(folder / str(config.triton_program))
    records = json.loads(files[f"chat-cpu/{config.kernels}"])
    assert {(one["name"], one["target"]) for one in records} == {
        (name, target) for name in (*manifest.kernels, manifest.sample_kernel) for target in ("sm_90", "gfx942")
    }
    assert manifest.sample_kernel == "sample__fp32__vocab_size320"
    for one in records:
        assert f"chat-cpu/{one['source_file']}" in files
        assert files[f"chat-cpu/{one['binary_file']}"][:4] == b"\x7fELF"
    rows = json.loads(files["resources.json"])
    assert len(rows) == len(records)
    assert all(row["registers"] > 0 and 0 < row["occupancy"] <= 1 for row in rows)
    assert report.manifest.toolchain.keys() == {"triton"}
    assert {choice.implementation for choice in config.implementations} <= set(manifest.kernels)

    started = time.monotonic()
    again = compile_plan(plan, tmp_path / "bundle", ["sm_90", "gfx942", "cpu"], cache=tmp_path / "cache")
    assert again.groups[0].cached == len(records)
    assert time.monotonic() - started < min(3.0, first_s)
    assert contents(tmp_path / "bundle") == files


@needs_triton
def test_implementations_of_steps_are_recorded_smallest_first(tmp_path: Path) -> None:
    """Two KV heads on 132 multiprocessors: 132 sequences give two programs each, so fewer are split."""
    plan = with_group(tiny_plan(), limits__max_num_seqs=256)
    plan = changed(plan, devices={"cpu": device("cpu", target="sm_90").model_dump()})
    config = compile_plan(plan, tmp_path / "bundle", cache=tmp_path / "cache").groups[0].config
    decode = [one for one in config.implementations if "decode" in one.operators]
    assert [(one.max_sequences, one.implementation.split("__")[0]) for one in decode] == [
        (131, "paged_attention_split"),
        (256, "paged_attention_decode"),
    ]
    assert {one.basis for one in config.implementations} == {"predicted"}


def test_a_group_of_another_engine_is_exported_not_compiled(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"chat-h100-tp4 runs on vllm: it is exported, not compiled; use `capstan export"
    ) as e:
        compile_plan(chat_plan(), tmp_path / "bundle", plan_file="plan.json")
    assert e.value.exit_code == 2
    assert e.value.file == "plan.json"
    assert not (tmp_path / "bundle").exists()


def test_in_a_mixed_fleet_the_groups_of_this_engine_are_compiled(tmp_path: Path) -> None:
    mine, other = tiny_plan().groups[0], chat_group()
    routes = tuple(Route(request_class="conversation", group=one.id, share=0.5) for one in (mine, other))
    plan = changed(
        plan_of((mine, other), routes),
        architectures={"chat": TINY},
        devices={"cpu": device("cpu", target="cpu").model_dump(), "h100-sxm": device().model_dump()},
    )
    report = compile_plan(plan, tmp_path / "bundle")
    assert report.manifest.groups == ("chat-cpu",)
    assert report.manifest.exported_groups == ("chat-h100-tp4",)
    with pytest.raises(InputError, match="use `capstan export`"):
        read_runtime_config(tmp_path / "bundle", "chat-h100-tp4")
    with pytest.raises(InputError, match="runs on vllm"):
        compile_plan(plan, tmp_path / "other", groups=["chat-h100-tp4"])


@pytest.mark.parametrize(
    ("targets", "nearest"), [(["sm90"], "sm_90"), (["gfx943"], "gfx942"), (["cup"], "cpu"), (["sm_90", "hopper"], None)]
)
def test_an_unknown_target_is_refused_with_the_nearest(tmp_path: Path, targets: list[str], nearest: str | None) -> None:
    with pytest.raises(InputError, match="there is no target") as caught:
        compile_plan(tiny_plan(), tmp_path / "bundle", targets)
    assert caught.value.exit_code == 2
    assert all(target in str(caught.value.expected) for target in (*TARGETS, "cpu"))
    assert nearest is None or nearest in caught.value.nearest


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights_dtype": "fp8"}, "weights in fp8 cannot be compiled"),
        ({"cache__kv_dtype": "fp8"}, "KV cache in fp8 cannot be compiled"),
        ({"layout__pipeline_stages": (1, 1)}, "2 pipeline_stages cannot be compiled"),
        ({"layout__attention_data_parallel": 2}, "attention_data_parallel of 2"),
        ({"layout__expert_parallel": 2}, "expert_parallel of 2"),
        ({"layout__tensor_parallel": 3}, "4 attention heads cannot be split evenly over 3 ranks"),
        ({"layout__pipeline_stages": (3,)}, "hold 3 layers, tiny has 2"),
    ],
)
def test_what_has_no_program_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(NotHonouredError, match=message) as caught:
        compile_plan(with_group(tiny_plan(), **fields), tmp_path / "bundle")
    assert "group chat-cpu" in str(caught.value)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, r"rotary embedding \(yarn\)"),
        ({"quantization_config": {"quant_method": "fp8"}}, "is stored in fp8"),
        (
            {"model_type": "opt", "architectures": ["OPTForCausalLM"], "ffn_dim": 96, "word_embed_proj_dim": 64},
            "model family 'opt'",
        ),
    ],
)
def test_a_model_without_a_program_is_refused_by_name(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    config = TINY | change
    if config["model_type"] == "opt":
        for name in ("intermediate_size", "num_key_value_heads"):
            config.pop(name)
    with pytest.raises(NotHonouredError, match=message):
        compile_plan(changed(tiny_plan(), architectures={"chat": config}), tmp_path / "bundle")


@needs_triton
def test_heads_that_no_kernel_takes_compile_for_the_cpu_only(tmp_path: Path) -> None:
    plan = changed(tiny_plan(), architectures={"chat": TINY | {"head_dim": 24}})
    with pytest.raises(InputError, match="head_dim to be a power of two, not 24"):
        compile_plan(plan, tmp_path / "bundle", ["sm_90"])
    compile_plan(plan, tmp_path / "bundle", ["cpu"])


def test_verification_names_the_file_that_differs(tmp_path: Path) -> None:
    compile_plan(tiny_plan(), tmp_path / "bundle")
    verify_bundle(tmp_path / "bundle")
    program = tmp_path / "bundle" / "chat-cpu" / "program_torch.py"
    text = program.read_text()
    program.write_text(text.replace("RMS_NORM_EPS = 1e-06", "RMS_NORM_EPS = 1e-05"))
    assert program.read_text() != text
    with pytest.raises(InputError, match="differs from its hash") as caught:
        verify_bundle(tmp_path / "bundle")
    assert caught.value.file == str(program)
    program.unlink()
    with pytest.raises(InputError, match="cannot be read") as caught:
        verify_bundle(tmp_path / "bundle")
    assert caught.value.file == str(program)


def bytecode_of(program: Path, source: str) -> Path:
    """What Python would import in the place of `program`: other code, with the file's own time and size."""
    cached = Path(importlib.util.cache_from_source(str(program)))
    cached.parent.mkdir()
    stat = program.stat()
    code = importlib._bootstrap_external._code_to_timestamp_pyc(  # type: ignore[attr-defined]
        compile(source, str(program), "exec"), int(stat.st_mtime), stat.st_size
    )
    cached.write_bytes(code)
    return cached


def test_bytecode_beside_a_program_is_refused_and_never_run(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from runtime.config import load_forward, open_group

    compile_plan(tiny_plan(), tmp_path / "bundle")
    program = tmp_path / "bundle" / "chat-cpu" / "program_torch.py"
    served = open_group(tmp_path / "bundle")
    cached = bytecode_of(program, "forward = 'not what was verified'.upper")
    with pytest.raises(InputError, match="is not in the manifest") as caught:
        verify_bundle(tmp_path / "bundle")
    assert caught.value.file == str(cached)
    forward = load_forward(served.program, served.source)
    assert forward.__code__.co_filename == str(program)


def test_a_file_that_the_manifest_does_not_list_is_refused_by_name(tmp_path: Path) -> None:
    compile_plan(tiny_plan(), tmp_path / "bundle")
    for name in ("chat-cpu/extra.py", "notes.txt", "chat-cpu/linked"):
        path = tmp_path / "bundle" / name
        if name.endswith("linked"):
            path.symlink_to(tmp_path)
        else:
            path.write_text("")
        with pytest.raises(InputError, match="is not in the manifest") as caught:
            verify_bundle(tmp_path / "bundle")
        assert caught.value.file == str(path)
        path.unlink()
    verify_bundle(tmp_path / "bundle")


@pytest.mark.parametrize("name", ["plan.json", "runtime.json", "config.json", "program_torch.json", "program_torch.py"])
def test_a_manifest_without_a_file_that_is_needed_is_refused(tmp_path: Path, name: str) -> None:
    compile_plan(tiny_plan(), tmp_path / "bundle")
    path = name if name == "plan.json" else f"chat-cpu/{name}"
    manifest = tmp_path / "bundle" / "manifest.json"
    document = json.loads(manifest.read_text())
    document["files"] = [record for record in document["files"] if record["path"] != path]
    manifest.write_text(json.dumps(document))
    (tmp_path / "bundle" / path).unlink()
    with pytest.raises(InputError, match=f"leaves out {path}"):
        verify_bundle(tmp_path / "bundle")


def test_a_manifest_of_another_plan_is_refused(tmp_path: Path) -> None:
    compile_plan(tiny_plan(), tmp_path / "bundle")
    manifest = tmp_path / "bundle" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"plan_sha256": 64 * "0"}))
    with pytest.raises(InputError, match="plan_sha256"):
        verify_bundle(tmp_path / "bundle")


def test_a_group_over_several_devices_is_compiled_and_said_not_to_be_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    from capstan.commands.compile import run_compile
    from runtime.config import open_group

    with_group(tiny_plan(), layout__tensor_parallel=2).write(tmp_path / "plan.json")
    run_compile(tmp_path / "plan.json", tmp_path / "bundle", ["cpu"])
    said = capsys.readouterr().out
    assert "chat-cpu: compiled, not served yet: a replica takes 2 devices" in said
    assert "serve with" not in said
    with pytest.raises(NotHonouredError, match=r"splits a replica over 2 devices.* one entry in pipeline_stages"):
        open_group(tmp_path / "bundle")


@needs_triton
def test_each_target_has_the_threshold_of_its_own_devices(tmp_path: Path) -> None:
    """Two KV heads: 132 multiprocessors of an H100 give 132 sequences, 304 of an MI300X give 304; a CPU's 16 none."""
    report = compile_plan(tiny_plan(), tmp_path / "bundle", ["sm_90", "gfx942"], cache=tmp_path / "cache")
    config, folder = report.groups[0].config, tmp_path / "bundle" / "chat-cpu"
    assert config.triton_programs == {"gfx942": "program_triton_gfx942.json"}
    for name, threshold in ((config.triton_program, 132), (config.triton_programs["gfx942"], 304)):
        module = ProgramManifest.read(folder / str(name)).module
        assert f"SPLIT_BELOW_SEQUENCES = {threshold} " in (folder / module).read_text()
    verify_bundle(tmp_path / "bundle")
    pytest.importorskip("torch")
    from runtime.config import open_group

    modules = [open_group(tmp_path / "bundle", None, "triton", one).manifest.module for one in ("gfx942", "sm_90")]
    assert modules == ["program_triton_gfx942.py", "program_triton.py"]


def test_a_manifest_that_points_outside_is_refused(tmp_path: Path) -> None:
    compile_plan(tiny_plan(), tmp_path / "bundle")
    manifest = tmp_path / "bundle" / "manifest.json"
    document = json.loads(manifest.read_text())
    for path in ("../../etc/passwd", "/etc/passwd"):
        document["files"][0]["path"] = path
        manifest.write_text(json.dumps(document))
        with pytest.raises(InputError, match="outside the bundle"):
            verify_bundle(tmp_path / "bundle")


def test_someone_elses_folder_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep me")
    with pytest.raises(InputError, match="is not a bundle; refuse to replace it"):
        compile_plan(tiny_plan(), mine)
    assert contents(mine) == {"notes.txt": b"keep me"}
    compile_plan(tiny_plan(), tmp_path / "bundle")
    (tmp_path / "bundle" / "notes.txt").write_text("mine too")
    with pytest.raises(InputError, match="also holds other files"):
        compile_plan(tiny_plan(), tmp_path / "bundle")


def test_an_earlier_bundle_is_replaced_whole(tmp_path: Path) -> None:
    compile_plan(tiny_plan(), tmp_path / "bundle")
    compile_plan(with_group(tiny_plan(), id="renamed"), tmp_path / "bundle")
    assert Bundle.read(tmp_path / "bundle" / "manifest.json").groups == ("renamed",)
    assert not (tmp_path / "bundle" / "chat-cpu").exists()


def test_a_failed_write_leaves_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_plan(tiny_plan(), tmp_path / "bundle")
    before = contents(tmp_path / "bundle")
    written = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if self.name == "runtime.json":
            raise OSError(28, "No space left on device")
        return written(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="No space left on device"):
        compile_plan(with_group(tiny_plan(), replicas=1, placement=()), tmp_path / "bundle")
    assert contents(tmp_path / "bundle") == before
    assert os.listdir(tmp_path) == ["bundle"]


def test_the_root_of_the_file_system_is_no_bundle() -> None:
    with pytest.raises(InputError, match="/: is not empty and is not a bundle; refuse to replace it"):
        compile_plan(tiny_plan(), "/")


def test_a_folder_that_cannot_be_searched_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()

    def denied(self: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)"):
        compile_plan(tiny_plan(), tmp_path / "mine")


def failing_renames(monkeypatch: pytest.MonkeyPatch, output: Path, most: int) -> None:
    """Renaming onto `output` fails `most` times with a full disk."""
    renamed, failed = os.replace, []

    def rename(source: Any, target: Any) -> None:
        if Path(target) == output and len(failed) < most:
            failed.append(source)
            raise OSError(28, "No space left on device")
        renamed(source, target)

    monkeypatch.setattr(os, "replace", rename)


def test_the_old_bundle_is_put_back_where_the_new_one_cannot_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    compile_plan(tiny_plan(), bundle)
    before = contents(bundle)
    failing_renames(monkeypatch, bundle, 2)  # at first, and with the old one out of the way
    with pytest.raises(InputError, match="No space left on device"):
        compile_plan(with_group(tiny_plan(), id="renamed"), bundle)
    assert contents(bundle) == before
    assert os.listdir(tmp_path) == ["bundle"]


def test_an_old_bundle_that_cannot_be_put_back_is_kept_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    compile_plan(tiny_plan(), bundle)
    before = contents(bundle)
    failing_renames(monkeypatch, bundle, 3)
    with pytest.raises(InputError, match="the old one is ") as caught:
        compile_plan(with_group(tiny_plan(), id="renamed"), bundle)
    assert contents(Path(str(caught.value).rpartition("the old one is ")[2])) == before


def test_the_same_bundle_again_leaves_the_files_alone(tmp_path: Path) -> None:
    """Another process may be reading them."""
    compile_plan(tiny_plan(), tmp_path / "bundle")
    inode = (tmp_path / "bundle" / "plan.json").stat().st_ino
    compile_plan(tiny_plan(), tmp_path / "bundle")
    assert (tmp_path / "bundle" / "plan.json").stat().st_ino == inode


def test_of_two_that_write_the_same_bundle_the_first_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, renamed = tmp_path / "bundle", os.replace

    def slow(source: Any, target: Any) -> None:
        if Path(target) == bundle and not bundle.exists():  # the other process is quicker
            bundle.mkdir()
            (bundle / "a").write_bytes(b"1")
        renamed(source, target)

    monkeypatch.setattr(os, "replace", slow)
    write_directory({"a": b"1"}, bundle)
    assert contents(tmp_path) == {"bundle/a": b"1"}


def test_group_ids_that_cannot_name_a_folder_are_refused(tmp_path: Path) -> None:
    for name in ("../up", "plan.json", ".hidden", "a/b"):
        with pytest.raises(InputError, match="cannot name a folder"):
            compile_plan(with_group(tiny_plan(), id=name), tmp_path / "bundle")


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"scheduling__order": "vtc"}, "scheduling.order"),
        ({"scheduling__max_waiting_tokens": 9000}, "scheduling.max_waiting_tokens"),
        ({"cache__prefix_caching": True}, "cache.prefix_caching"),
    ],
)
def test_rules_that_the_runtime_does_not_follow_are_refused(tmp_path: Path, fields: dict[str, Any], where: str) -> None:
    plan = tiny_plan(**fields)
    with pytest.raises(InputError) as caught:
        compile_plan(plan, tmp_path / "bundle")
    assert caught.value.field == f"groups.{plan.groups[0].id}.{where}"
    assert not (tmp_path / "bundle").exists()


def test_an_unknown_group_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no group 'chat-cpuu'") as caught:
        compile_plan(tiny_plan(), tmp_path / "bundle", groups=["chat-cpuu"])
    assert caught.value.nearest == ("chat-cpu",)
    compile_plan(tiny_plan(), tmp_path / "bundle")
    with pytest.raises(InputError) as caught:
        read_runtime_config(tmp_path / "bundle", "chat")
    assert caught.value.nearest == ("chat-cpu",)


def test_files_are_written_under_their_own_names_only(tmp_path: Path) -> None:
    write_directory({"a/b.txt": b"1", "c": b"2"}, tmp_path / "out")
    assert contents(tmp_path / "out") == {"a/b.txt": b"1", "c": b"2"}


def test_the_command_reads_a_plan_and_prints_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from capstan.commands.compile import run_compile

    tiny_plan().write(tmp_path / "plan.json")
    run_compile(tmp_path / "plan.json", tmp_path / "bundle", ["cpu"], None, True)
    document = json.loads(capsys.readouterr().out)
    assert document["groups"] == [
        {"group": "chat-cpu", "targets": ["cpu"], "devices": 1, "binaries": 0, "implementations": []}
    ]
    run_compile(tmp_path / "plan.json", tmp_path / "bundle")
    assert f"capstan serve {tmp_path / 'bundle'} --group chat-cpu --model DIR" in capsys.readouterr().out
    with pytest.raises(InputError, match="there is no target 'sm_9'") as caught:
        run_compile(tmp_path / "plan.json", tmp_path / "bundle", ["cpu,sm_9"])
    assert caught.value.file == str(tmp_path / "plan.json")
