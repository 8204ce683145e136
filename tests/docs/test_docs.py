"""The documentation says what the code does: the reference is in sync, examples parse, names and links exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from capstan.cli import app
from planner.optimize import programme
from specs.deployment import load_deployment, parse_deployment, unhonoured_statements

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
WHOLE_REACH = ROOT / "tests" / "data" / "specs" / "whole_reach.yaml"
PAGES = ["README.md", "answers.md", "spec.md", "planning.md", "schedule.md", "exports.md", "calibrate.md", "verify.md"]
BASE = """\
models: {chat: Qwen/Qwen3-8B}
hardware: {pools: [{name: h100, device: h100-sxm, count: 8, price: $2.90/h}]}
traffic: [{name: all, arrivals: 1/s, prompt_tokens: 10, output_tokens: 10, slo: {ttft: {p90: 1s}}}]
"""


@pytest.fixture(scope="module")
def generator():
    found = importlib.util.spec_from_file_location("generate_spec", DOCS / "generate_spec.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_reference_of_the_spec_is_what_the_grammar_generates(generator):
    committed = (DOCS / "spec.md").read_text(encoding="utf-8")
    assert committed == generator.page(), "run: python docs/generate_spec.py"


def test_every_field_of_the_schema_is_on_the_page():
    from specs.deployment.written import written_schema

    def fields(schema):
        if isinstance(schema, dict):
            yield from schema.get("properties", {})
        for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
            yield from fields(part)

    page = (DOCS / "spec.md").read_text(encoding="utf-8")
    missing = {name for name in fields(written_schema()) if f"`{name}`" not in page and f"{{{name}" not in page}
    assert missing == set()


def test_what_is_refused_is_marked_so_and_nothing_else(generator):
    """Against the specs' own refusals of a file that declares everything."""
    spec = load_deployment(WHOLE_REACH, honour=False)
    marked = {*generator.NOT_HONOURED, *generator.PARTLY, "traffic[]", "traffic[].prompt_tokens"}
    for path, _ in unhonoured_statements(spec):
        plain = re.sub(r"\[\d+\]", "[]", re.sub(r"^models\.[^.]+", "models.NAME", path))
        assert plain in marked, f"{path} is refused, and docs/generate_spec.py does not say so"
    refused = {
        re.sub(r"\[\d+\]", "[]", re.sub(r"^models\.[^.]+", "models.NAME", path))
        for path, _ in unhonoured_statements(spec)
    }
    declared = {"hardware.host.pcie", "hardware.host.nvme", "limits.power"}
    assert set(generator.NOT_HONOURED) - refused <= declared  # the file does not declare these


@pytest.mark.parametrize("page", ["spec.md"])
def test_every_example_is_a_spec_that_loads(page, tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 6
    for block in blocks:
        document = yaml.safe_load(BASE) | yaml.safe_load(block)
        loaded = parse_deployment(yaml.safe_dump(document), "example")
        assert unhonoured_statements(loaded.spec) == ()


def test_the_formulation_names_every_constraint_family():
    page = (DOCS / "planning.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \| ", page, re.MULTILINE)
    source = Path(programme.__file__).read_text(encoding="utf-8")
    used = re.findall(r"yield from (\w+)\(programme, variables\)", source)
    assert listed == used
    parameters = re.search(r"Parameters\n(.*?)Variables\n(.*?)Objective", programme.__doc__, re.DOTALL)
    for name in re.findall(r"^    (\w+)\[", parameters[1] + parameters[2], re.MULTILINE):
        assert f"{name}[" in page


def test_commands_on_the_pages_exist():
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    for page in PAGES:
        named = set(re.findall(r"`capstan ([a-z]+)", (DOCS / page).read_text(encoding="utf-8")))
        assert named <= known, page


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_lead_somewhere(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (DOCS / target).exists(), target
    for path in re.findall(r"`((?:planner|specs|codegen|docs|runtime)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
