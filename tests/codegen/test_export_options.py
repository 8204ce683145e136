"""Speculation, the host tier and priorities as arguments of vLLM; what it could not load is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from plan_fixture import changed, chat_plan

from codegen.exports.args import vllm_arguments
from codegen.exports.checks import check_plan
from codegen.exports.kubernetes import kubernetes_export
from codegen.exports.options import host_tier_gib
from specs.engine_rules import rules_not_followed
from specs.errors import InputError
from specs.plan import Plan

DRAFTS = {"draft_tokens": 3, "acceptance": 0.7}


def speculating(**declared: Any) -> Plan:
    plan = chat_plan(scheduling__speculation=DRAFTS)
    spec = {"acceptance": 0.7, "max_draft": 3, "draft_model": None} | declared
    models = {name: dict(model) | {"speculative": spec} for name, model in plan.spec["models"].items()}
    return plan.model_copy(update={"spec": plan.spec | {"models": models}})


def options_of(plan: Plan) -> dict[str, Any]:
    check_plan(plan)
    return dict(vllm_arguments(plan, plan.groups[0]).options)


@pytest.mark.parametrize(
    ("declared", "config"),
    [
        ({"method": "ngram"}, {"method": "ngram", "num_speculative_tokens": 3}),
        ({"method": "mtp"}, {"method": "mtp", "num_speculative_tokens": 3}),
        (
            {"method": "draft", "draft_model": "meta-llama/Llama-3.2-1B"},
            {"method": "draft_model", "model": "meta-llama/Llama-3.2-1B", "num_speculative_tokens": 3},
        ),
        (
            {"method": "eagle", "draft_model": "org/head"},
            {"method": "eagle", "model": "org/head", "num_speculative_tokens": 3},
        ),
    ],
)
def test_speculation_is_one_argument(declared: dict[str, Any], config: dict[str, Any]) -> None:
    assert json.loads(options_of(speculating(**declared))["speculative-config"]) == config


def test_a_head_without_a_checkpoint_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        options_of(speculating(method="eagle"))
    assert caught.value.field == "spec.models.chat.speculative.draft_model"


def test_the_host_tier_is_in_gib_of_all_ranks() -> None:
    plan = chat_plan(cache__host_blocks=10_000, cache__prefix_caching=True)
    group = plan.groups[0]
    each = 10_000 * group.cache.block_size_tokens * group.cache.memory.kv_bytes_per_token
    options = options_of(plan)
    assert options["kv-offloading-size"] == pytest.approx(each * group.layout.gpus / 2**30, abs=1e-3)
    assert options["kv-offloading-backend"] == "native"
    assert "kv-offloading-size" not in options_of(chat_plan())


def test_a_pod_has_memory_for_its_host_tier() -> None:
    def memory_gib(plan: Plan) -> int:
        texts = [text for name, text in kubernetes_export(plan).files.items() if name.endswith((".yaml", ".yml"))]
        documents = [document for text in texts for document in yaml.safe_load_all(text)]
        found = [item for item in documents if isinstance(item, dict) and item.get("kind") == "StatefulSet"]
        container = found[0]["spec"]["template"]["spec"]["containers"][0]
        return int(container["resources"]["requests"]["memory"].removesuffix("Gi"))

    plan = chat_plan(cache__host_blocks=10_000, cache__prefix_caching=True)
    more = memory_gib(plan) - memory_gib(chat_plan())
    assert 0 <= more - host_tier_gib(plan.groups[0]) < 1


def declaring(plan: Plan, **declared: Any) -> Plan:
    models = {name: dict(model) | declared for name, model in plan.spec["models"].items()}
    return plan.model_copy(update={"spec": plan.spec | {"models": models}})


def test_adapters_get_the_next_larger_rank() -> None:
    options = options_of(declaring(chat_plan(), adapters={"count": 5, "rank": 24}))
    assert (options["enable-lora"], options["max-loras"], options["max-lora-rank"]) == (True, 5, 32)
    with pytest.raises(InputError, match="up to rank 512"):
        options_of(declaring(chat_plan(), adapters={"count": 1, "rank": 1000}))


def test_priorities_are_the_engines_own_with_a_word_to_clients() -> None:
    plan = chat_plan(scheduling__order="priority")
    assert options_of(plan)["scheduling-policy"] == "priority"
    assert "`priority`" in " ".join(vllm_arguments(plan, plan.groups[0]).notes)


def test_another_engine_refuses_what_it_is_not_told() -> None:
    group = changed(chat_plan().groups[0], scheduling__order="priority")
    assert [field for field, _, _ in rules_not_followed("sglang", group.scheduling, group.cache)] == [
        "scheduling.order"
    ]
    assert not list(rules_not_followed("vllm", group.scheduling, group.cache))
