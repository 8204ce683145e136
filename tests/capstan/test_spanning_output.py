"""A replica over two pools, as the commands show it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import specs
from capstan.cli import app

EXAMPLE = Path(specs.__file__).parent / "examples" / "old-and-new.yaml"


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    target = tmp_path_factory.mktemp("plan") / "plan.json"
    return target, run("plan", EXAMPLE, "-o", target)


def test_the_plan_shows_where_every_stage_stands(planned: tuple[Path, str]) -> None:
    path, shown = planned
    layers = json.loads(path.read_text())["groups"][0]["layout"]["pipeline_stages"]
    assert "2 x a100-pcie on 1 node of old + 2 x l40s on 1 node of new" in shown
    assert f"TP 2, PP 2, stages of {layers[0]} layers on old, {layers[1]} on new" in shown
    assert "a100-pcie 17%" in shown  # errors of single kernels, of both devices
    assert "l40s 2%" in shown


def test_other_commands_speak_of_both_pools(planned: tuple[Path, str], tmp_path: Path) -> None:
    path, _ = planned
    explained = run("explain", path)
    assert "old a100-pcie, 2 used; chosen: 1 x TP 2 PP 2 bf16" in explained
    assert "old + new" in explained
    assert "every objective holds" in run("simulate", path)
    assert "the plans say the same" in run("diff", path, path)
    run("export", path, "--to", "vllm", "-o", tmp_path / "deploy")
    assert "old-0)" in (tmp_path / "deploy" / "group-0" / "serve.sh").read_text()
    refused = run("export", path, "--to", "kubernetes", "-o", tmp_path / "k8s", code=2)
    assert "spans 2 machines" in refused
    assert not (tmp_path / "k8s").exists()


def test_a_plan_whose_stages_name_an_unknown_pool_is_refused(planned: tuple[Path, str], tmp_path: Path) -> None:
    document = json.loads(planned[0].read_text())
    document["groups"][0]["stages"][1]["pool"] = "neww"
    (tmp_path / "plan.json").write_text(json.dumps(document))
    assert "did you mean 'new'" in run("simulate", tmp_path / "plan.json", code=2)
