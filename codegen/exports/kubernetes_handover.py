"""The router between a prefill and a decode group in a cluster: a Deployment of one pod, with a Service."""

from __future__ import annotations

from collections.abc import Mapping

from codegen.exports.engines import ENGINES
from codegen.exports.manifests import EXIT_S, PORT, SIDE_PORT, Manifest, digest, labels, pod_address, selector
from codegen.exports.scripts import HANDOVER, handover_command, handover_source
from codegen.exports.shared import drain_s
from specs.plan import Plan, ReplicaGroup


def handover_manifests(plan: Plan, group: ReplicaGroup, name: str, names: Mapping[str, str]) -> tuple[Manifest, ...]:
    """The router between a prefill group and its decode group: it lists the pods of both."""
    engine = ENGINES[group.engine]
    decode = plan.group(group.hands_over_to or "")
    prefill = [(f"http://{address}", str(SIDE_PORT)) for address in _pods_in_words(names, group)]
    there = [f"http://{address}" for address in _pods_in_words(names, decode)]
    command = handover_command(engine, plan, prefill, there, PORT, f"/etc/capstan/{HANDOVER}")
    own_labels, own_selector = labels(plan, name), selector(name)
    metadata = {"name": name, "labels": own_labels}
    probe = {"httpGet": {"path": "/health", "port": "http"}}
    container: Manifest = {
        "name": "handover",
        "image": engine.table.images[plan.devices[group.device].vendor],
        "command": command,
        "env": [
            {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
            {"name": "CLUSTER_DOMAIN", "value": "cluster.local"},
        ],
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": {"requests": {"cpu": 2, "memory": "1Gi"}, "limits": {"memory": "4Gi"}},
        "securityContext": {"allowPrivilegeEscalation": False},
        "readinessProbe": {**probe, "periodSeconds": 5},
        "livenessProbe": {**probe, "periodSeconds": 10},
    }
    pod: Manifest = {
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": drain_s(plan, group) + EXIT_S,
        "containers": [container],
    }
    manifests: list[Manifest] = []
    annotations: dict[str, str] = {}
    if engine.name == "vllm":
        source = handover_source()
        manifests.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {HANDOVER: source}})
        container["volumeMounts"] = [{"name": "script", "mountPath": "/etc/capstan", "readOnly": True}]
        pod["volumes"] = [{"name": "script", "configMap": {"name": name}}]
        annotations = {"capstan-configuration": digest(source)}
    manifests += [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {
                "replicas": 1,  # two routers would each count only their own requests
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                "selector": {"matchLabels": own_selector},
                "template": {"metadata": {"labels": own_labels, "annotations": annotations}, "spec": pod},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": own_selector, "ports": [{"name": "http", "port": PORT, "targetPort": "http"}]},
        },
    ]
    return tuple(manifests)


def _pods_in_words(names: Mapping[str, str], group: ReplicaGroup) -> list[str]:
    """Addresses of a group's pods in the form that a container's command takes: `$(NAME)` is its environment."""
    addresses = (pod_address(names[group.id], index) for index in range(group.replicas))
    return [address.replace("${", "$(").replace("}", ")") for address in addresses]
