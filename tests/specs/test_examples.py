"""Every shipped example loads, is honoured, fits the schema that editors get, and says what it claims to say."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import jsonschema
import pytest
import yaml

import specs
from specs.architecture import load_architecture
from specs.catalog import load_device
from specs.deployment import load_deployment, read_deployment
from specs.deployment.written import written_schema

EXAMPLES = Path(specs.__file__).parent / "examples"
FILES = sorted(EXAMPLES.glob("*.yaml"))
WHOLE_REACH = Path(__file__).parents[1] / "data" / "specs" / "whole_reach.yaml"


def test_the_examples_are_there():
    names = {file.stem for file in FILES}
    assert names >= {"chat-70b", "minimal", "code-30b-moe", "two-classes", "existing-deployment"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_example_is_valid_and_everything_it_names_exists(file):
    spec = load_deployment(file)
    assert spec.name == file.stem
    for model in spec.models.values():
        load_architecture(model.architecture, base_dir=file.parent)
    for pool in spec.hardware.pools:
        load_device(pool.device)
    for item in spec.traffic:
        assert item.trace is None or (file.parent / item.trace.file).is_file()


@pytest.mark.parametrize("file", [*FILES, WHOLE_REACH], ids=lambda file: file.stem)
def test_example_fits_the_editor_schema(file):
    jsonschema.Draft202012Validator(written_schema()).validate(yaml.safe_load(file.read_text()))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("count: 16", "count: sixteen"), ("price: $2.90/h", "price: 2.90"), ("rate: 20/s", "rate: 20 apples"),
        ("p90: 1s", "p90: 1GB"), ("max_context: 16Ki", "max_context: 16KiB"), ("device: h100-sxm", "devise: h100-sxm"),
        ("minimise cost", "minimise fun"), ("ttft: {p90: 1s}", "ttft: {mean: 1s}"), ("[bf16, fp8]", "[bf16, fp7]"),
    ],
)  # fmt: skip
def test_the_editor_schema_refuses_what_the_loader_refuses(old, new):
    text = (EXAMPLES / "chat-70b.yaml").read_text()
    assert old in text
    wrong = yaml.safe_load(text.replace(old, new, 1))
    assert not jsonschema.Draft202012Validator(written_schema()).is_valid(wrong)


def test_chat_70b_says_what_the_readme_says():
    spec = load_deployment(EXAMPLES / "chat-70b.yaml")
    assert {pool.name: (pool.count, pool.rent) for pool in spec.hardware.pools} == {
        "h100": (16, "node"), "h200": (8, "node"), "l40s": (16, "node"), "a100": (8, "node"),
    }  # fmt: skip
    (conversation,) = spec.traffic
    assert conversation.trace.rate_per_s == 20
    limits = {(p.metric, p.percentile): p.limit_s for p in conversation.slo.percentiles}
    assert limits == {("ttft", 90): 1.0, ("tpot", 90): 0.05}
    assert str(spec.objective) == "minimise cost"
    assert spec.choices.engine == ("vllm",)


def test_the_shipped_trace_is_the_published_one():
    """The CSV inside has the hash of the published file, and no request is longer than the example's max_context."""
    loaded = read_deployment(EXAMPLES / "chat-70b.yaml")
    data = gzip.decompress((loaded.base_dir / loaded.spec.traffic[0].trace.file).read_bytes())
    assert hashlib.sha256(data).hexdigest() == PUBLISHED_SHA256
    rows = [line.split(",") for line in data.decode().splitlines()[1:]]
    assert len(rows) == 19366
    assert max(int(row[1]) + int(row[2]) for row in rows) == 14089 < loaded.spec.models["chat"].max_context_tokens


PUBLISHED_SHA256 = "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8"
