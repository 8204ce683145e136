"""The manifests are valid for Kubernetes, offline and strictly, and say what the plan says."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from plan_fixture import changed, chat_group, chat_plan, device, fleet_plan, plan_of
from test_export_router import inside, parse, shares

from codegen.exports import export_plan
from codegen.exports.args import vllm_arguments
from specs.plan import Plan, Route

ODD = "No: [\"good\"] 'name' # 1"


def manifests(plan: Plan) -> list[dict[str, Any]]:
    files = export_plan(plan, "kubernetes").files
    return [
        document
        for name, text in sorted(files.items())
        if name.endswith(".yaml") and name != "kustomization.yaml"
        for document in yaml.safe_load_all(text)
    ]


def of_kind(plan: Plan, kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in manifests(plan) if each["kind"] == kind}


def odd_plan() -> Plan:
    groups = (chat_group(id="1.70B"), chat_group(id="on", pool="b"), chat_group(id="ON", pool="c"))
    routes = tuple(
        Route(request_class=ODD, group=group.id, share=share)
        for group, share in zip(groups, (0.2, 0.3, 0.5), strict=True)
    )
    return plan_of(groups, routes, name=ODD)


@pytest.mark.parametrize("plan", [chat_plan(), fleet_plan(), odd_plan()], ids=["chat", "fleet", "odd"])
def test_every_manifest_is_valid(plan: Plan) -> None:
    documents = manifests(plan)
    assert len(documents) == 3 * len(plan.groups) + 3
    for document in documents:
        kubernetes_validate.validate(document, "1.33", strict=True)


def test_a_wrong_manifest_would_be_found() -> None:
    document = of_kind(chat_plan(), "StatefulSet")["chat-h100-tp4"]
    document["spec"]["replica"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, "1.33", strict=True)


def test_pods_are_the_plans_replicas() -> None:
    plan = fleet_plan()
    sets = of_kind(plan, "StatefulSet")
    assert set(sets) == {group.id for group in plan.groups}
    for group in plan.groups:
        spec = sets[group.id]["spec"]
        (container,) = spec["template"]["spec"]["containers"]
        expected = vllm_arguments(plan, group)
        assert spec["replicas"] == group.replicas
        assert container["command"] == ["vllm", "serve"]
        assert container["args"] == [*expected.to_list(), "--port", "8000"]
        assert container["image"] == "vllm/vllm-openai:v0.24.0"
        assert container["resources"]["limits"] == {"nvidia.com/gpu": group.layout.gpus}
        environment = {each["name"]: each.get("value") for each in container["env"]}
        assert environment.items() >= dict(expected.environment).items()
        assert spec["template"]["spec"]["nodeSelector"] == {"capstan-device": "h100-sxm"}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]


def test_pods_are_scheduled_drained_and_stopped_as_an_operator_expects() -> None:
    """Requests make a pod more than best effort; a stopping replica is forgotten by the router, ends its requests,
    and only then is killed; a drain is never blocked by a replica that does not start."""
    plan = fleet_plan()
    for name, manifest in of_kind(plan, "StatefulSet").items():
        pod = manifest["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        gpus = plan.group(name).layout.gpus
        assert container["resources"]["requests"] == {
            "cpu": 4 * gpus,
            "memory": f"{16 + 16 * gpus}Gi",
            "nvidia.com/gpu": gpus,
        }
        assert set(container["resources"]["limits"]) == {"nvidia.com/gpu"}
        assert pod["automountServiceAccountToken"] is False
        words = container["args"]
        drain = int(words[words.index("--shutdown-timeout") + 1])
        forget = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
        assert forget >= 2 * 5  # the router asks for addresses every five seconds
        assert pod["terminationGracePeriodSeconds"] >= forget + drain + 10
        # 90 minutes to download and load
        startup = container["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] == 5400
    for budget in of_kind(plan, "PodDisruptionBudget").values():
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    router = of_kind(plan, "Deployment")["router"]["spec"]
    assert router["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}  # never without a router
    configuration = of_kind(plan, "ConfigMap")["router"]["data"]["nginx.conf.template"]
    assert "worker_processes 4;" in configuration
    assert "worker_processes auto;" in export_plan(plan, "vllm").files["nginx.conf"]
    assert not of_kind(plan, "HorizontalPodAutoscaler")


def test_a_checkpoint_fits_its_volume() -> None:
    """Llama-3.1-70B in bf16 takes 141 GB; quantised while loading, it is still downloaded in 16 bits."""
    for plan, name in ((chat_plan(), "chat-h100-tp4"), (fleet_plan(), "chat-h100-fp8")):
        (claim,) = of_kind(plan, "StatefulSet")[name]["spec"]["volumeClaimTemplates"]
        size = int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi"))
        assert 141e9 / 2**30 < size < 250


def test_selectors_find_their_pods() -> None:
    plan = fleet_plan()
    pods = [
        each["spec"]["template"]["metadata"]["labels"]
        for kind in ("StatefulSet", "Deployment")
        for each in of_kind(plan, kind).values()
    ]
    selectors = [each["spec"]["selector"] for each in of_kind(plan, "Service").values()]
    for kind in ("StatefulSet", "Deployment", "PodDisruptionBudget"):
        selectors += [each["spec"]["selector"]["matchLabels"] for each in of_kind(plan, kind).values()]
    for selector in selectors:
        assert sum(selector.items() <= labels.items() for labels in pods) == 1


def test_the_router_lists_every_pod_by_its_name() -> None:
    plan = fleet_plan()
    text = of_kind(plan, "ConfigMap")["router"]["data"]["nginx.conf.template"]
    (http,) = [inner for words, inner in parse(text) if words == ["http"]]
    assert http is not None
    services, sets = of_kind(plan, "Service"), of_kind(plan, "StatefulSet")
    for words, upstream in inside(http, "upstream"):
        name = words[1]
        servers = [line for line, _ in upstream if line[0] == "server"]
        assert sets[name]["spec"]["serviceName"] == name
        assert services[name]["spec"]["clusterIP"] == "None"
        assert [line[1:] for line in servers] == [
            [f"{name}-{index}.{name}.${{POD_NAMESPACE}}.svc.${{CLUSTER_DOMAIN}}:8000", "resolve"]
            for index in range(sets[name]["spec"]["replicas"])
        ]
    assert shares(text)["/conversation/"]["chat-h100-tp4"] == 0.7
    assert of_kind(plan, "Deployment")["router"]["spec"]["replicas"] == 1


def test_another_configuration_restarts_the_router() -> None:
    def annotation(plan: Plan) -> str:
        return of_kind(plan, "Deployment")["router"]["spec"]["template"]["metadata"]["annotations"][
            "capstan-configuration"
        ]

    assert annotation(fleet_plan()) == annotation(fleet_plan())
    assert annotation(fleet_plan()) != annotation(changed(fleet_plan(), router="round_robin"))


def test_kustomization_lists_every_manifest() -> None:
    files = export_plan(fleet_plan(), "kubernetes").files
    listed = yaml.safe_load(files["kustomization.yaml"])["resources"]
    assert sorted(listed) == sorted(name for name in files if name.endswith(".yaml") and name != "kustomization.yaml")


def test_amd_devices_use_their_own_resource_and_image() -> None:
    amd = device("mi300x", vendor="amd").model_dump()
    pools = [{"name": "h100", "device": "mi300x"}]
    plan = changed(chat_plan(device="mi300x"), devices={"mi300x": amd}, spec__hardware__pools=pools)
    (container,) = of_kind(plan, "StatefulSet")["chat-h100-tp4"]["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"amd.com/gpu": 4}
    assert container["image"] == "vllm/vllm-openai-rocm:v0.24.0"


def test_no_namespace_and_no_anchors() -> None:
    for name, text in export_plan(fleet_plan(), "kubernetes").files.items():
        if Path(name).suffix == ".yaml":
            assert "namespace:" not in text
            assert "&id" not in text
