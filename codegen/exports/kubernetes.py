"""A plan as Kubernetes manifests: a StatefulSet per group, and one nginx that knows every replica by name.

Replicas are pods of a StatefulSet because the plan's router sends each request to the replica with the fewest open
ones: it must see replicas, not one address behind which they hide. The headless Service gives each pod a name, nginx
lists these names and asks for their addresses again and again, and a pod that is not ready has no address.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import yaml

from codegen.exports.arguments import EngineArguments
from codegen.exports.checkpoint import checkpoint_dtype, is_directory
from codegen.exports.directory import Export, render
from codegen.exports.engines import ENGINES
from codegen.exports.kubernetes_handover import handover_manifests
from codegen.exports.manifests import (
    EXIT_S,
    PORT,
    SIDE_PORT,
    Manifest,
    digest,
    labels,
    pod_address,
    selector,
    service_address,
)
from codegen.exports.names import safe_name, safe_names
from codegen.exports.options import host_tier_gib
from codegen.exports.router import ClassRoute, Upstream, class_routes, nginx_configuration
from codegen.exports.scripts import handover_notes, nodes_of
from codegen.exports.shared import drain_s
from specs.errors import InputError
from specs.plan import Plan, ReplicaGroup

ROUTER_PORT = 8080
ROUTER_IMAGE = "nginx:1.28"  # open-source nginx looks names up again (`resolve`) from 1.27.3 on
DEVICE_LABEL = "capstan-device"  # of nodes, set by whoever runs the cluster
GPU_RESOURCE = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu"}
SHARED_MEMORY_GIB = 16  # for the engine's ranks to talk; counted against the pod's memory only as it fills
# What the scheduler keeps free on a node beside the devices: without requests a pod is the first to be evicted, and
# gets what CPU time others leave. Round figures, unmeasured.
ENGINE_CPUS_PER_DEVICE, ENGINE_GIB_PER_DEVICE = 4, 16
ROUTER_WORKERS = 4  # `auto` would start one per core of the node, whatever the pod may use
FORGET_S = 15  # until the router has asked again for the addresses and knows that a replica goes away
MODELS = "/models"
GIB = 2**30


def kubernetes_export(plan: Plan) -> Export:
    """Files of `--to kubernetes`, for a plan that passed `checks.check_plan`. No namespace is written.

    `InputError` for replicas that span machines and for checkpoints in a local directory.
    """
    between = {group.id: f"{group.id}-handover" for group in plan.groups if group.hands_over_to is not None}
    names = safe_names([*(group.id for group in plan.groups), *between.values(), "router"])
    files: dict[str, str] = {}
    notes: list[str] = []
    upstreams, summaries = [], []
    for group in plan.groups:
        arguments = ENGINES[group.engine].arguments(plan, group)
        _refuse(group, arguments)
        name = names[group.id]
        files[f"{name}.yaml"] = _documents(
            _headless_service(plan, name),
            _stateful_set(plan, group, name, arguments),
            _disruption_budget(plan, name),
        )
        if group.id in between:
            handover = names[between[group.id]]
            files[f"{handover}.yaml"] = _documents(*handover_manifests(plan, group, handover, names))
            upstreams.append(Upstream(name, (service_address(handover),)))
        elif group.role != "decode":
            upstreams.append(Upstream(name, tuple(pod_address(name, index) for index in range(group.replicas))))
        summaries.append({"group": group, "name": name, "arguments": arguments})
        notes += [f"{group.id}: {note}" for note in arguments.notes]
    for engine in dict.fromkeys(group.engine for group in plan.groups if group.id in between):
        notes += handover_notes(plan, ENGINES[engine])
        notes.append("Give the pods RDMA devices of your cluster in an overlay; without them KV caches cross by TCP.")
    routes = class_routes(plan, names)
    router = names["router"]
    # The image's entry point fills in the variables: the pod's namespace and the cluster's name servers.
    configuration = nginx_configuration(
        plan, upstreams, routes, port=ROUTER_PORT, resolver="${NGINX_LOCAL_RESOLVERS}", workers=ROUTER_WORKERS
    )
    files[f"{router}.yaml"] = _documents(*_router(plan, router, configuration))
    files["kustomization.yaml"] = _documents(
        {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": sorted(files),
        }
    )
    files["README.md"] = _readme(plan, summaries, routes, notes, router)
    return Export("kubernetes", files, tuple(notes))


def _refuse(group: ReplicaGroup, arguments: EngineArguments) -> None:
    for index, placement in enumerate(group.placement):
        if len(nodes_of(group, placement)) > 1:
            raise InputError(
                f"spans {len(nodes_of(group, placement))} machines, and this version writes one pod per replica",
                field=f"groups.{group.id}.placement.{index}",
                expected="a replica inside one machine; `--to vllm` writes commands for several",
            )
    if is_directory(arguments.model):
        raise InputError(
            f"the checkpoint {arguments.model!r} is a local directory, which a pod does not have",
            field=f"spec.models.{group.model}.architecture",
            expected="a Hugging Face id (ORG/NAME)",
        )


class _Dumper(yaml.SafeDumper):
    """Plain YAML for people: no anchors, and text of several lines as it is. The dumper does all the quoting."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def _documents(*manifests: Manifest) -> str:
    return "---\n".join(
        yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120) for manifest in manifests
    )


def _headless_service(plan: Plan, name: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels(plan, name)},
        "spec": {
            "clusterIP": "None",
            "selector": selector(name),
            "ports": [{"name": "http", "port": PORT, "targetPort": "http"}],
        },
    }


def _stateful_set(plan: Plan, group: ReplicaGroup, name: str, arguments: EngineArguments) -> Manifest:
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": name, "labels": labels(plan, name)},
        "spec": {
            "serviceName": name,
            "replicas": group.replicas,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": selector(name)},
            "template": {
                "metadata": {"labels": labels(plan, name)},
                "spec": {
                    # A Service named like one of the engine's variables would otherwise become its environment.
                    "enableServiceLinks": False,
                    "automountServiceAccountToken": False,
                    "terminationGracePeriodSeconds": FORGET_S + drain_s(plan, group) + EXIT_S,
                    "nodeSelector": {DEVICE_LABEL: safe_name(group.device)},
                    "tolerations": [{"key": _gpu_resource(plan, group), "operator": "Exists", "effect": "NoSchedule"}],
                    "containers": [_engine_container(plan, group, arguments)],
                    "volumes": [
                        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{SHARED_MEMORY_GIB}Gi"}}
                    ],
                },
            },
            "volumeClaimTemplates": [
                {
                    "metadata": {"name": "models"},
                    "spec": {
                        "accessModes": ["ReadWriteOnce"],
                        "resources": {"requests": {"storage": f"{_checkpoint_gib(plan, group)}Gi"}},
                    },
                }
            ],
        },
    }


def _engine_container(plan: Plan, group: ReplicaGroup, arguments: EngineArguments) -> Manifest:
    engine = ENGINES[group.engine]
    options, stated = engine.handover(group, SIDE_PORT, "$(POD_IP)")
    gpus = {_gpu_resource(plan, group): group.layout.gpus}
    host = {
        "cpu": ENGINE_CPUS_PER_DEVICE * group.layout.gpus,
        "memory": f"{SHARED_MEMORY_GIB + ENGINE_GIB_PER_DEVICE * group.layout.gpus + ceil(host_tier_gib(group))}Gi",
    }
    health = {"httpGet": {"path": "/health", "port": "http"}, "timeoutSeconds": 5}
    environment: list[Manifest] = [{"name": name, "value": value} for name, value in arguments.environment]
    if stated:
        environment.append({"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}})
        environment += [{"name": name, "value": value} for name, value in stated]
    environment += [
        {"name": "HF_HOME", "value": MODELS},
        {
            "name": "HF_TOKEN",
            "valueFrom": {"secretKeyRef": {"name": "huggingface", "key": "token", "optional": True}},
        },
    ]
    return {
        "name": "engine",
        "image": engine.table.images[plan.devices[group.device].vendor],
        "command": list(engine.table.command),
        "args": arguments.with_options(("port", PORT), *options).to_list(),
        "env": environment,
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": {"requests": {**host, **gpus}, "limits": dict(gpus)},
        "securityContext": {"allowPrivilegeEscalation": False},
        # Loading and quantising a large checkpoint takes long; only after that do the other probes count.
        "startupProbe": {**health, "periodSeconds": 10, "failureThreshold": 540},
        "readinessProbe": {**health, "periodSeconds": 5, "failureThreshold": 2},
        "livenessProbe": {**health, "periodSeconds": 10, "failureThreshold": 6},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(FORGET_S)]}}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}, {"name": "models", "mountPath": MODELS}],
    }


def _gpu_resource(plan: Plan, group: ReplicaGroup) -> str:
    return GPU_RESOURCE[plan.devices[group.device].vendor]


def _checkpoint_gib(plan: Plan, group: ReplicaGroup) -> int:
    """Disk for one checkpoint: the planned weights of all devices, 16-bit where the engine quantises while loading."""
    held = checkpoint_dtype(plan, group.model)
    bytes_per_weight = max(2.0, group.weights_dtype.bytes) if held is None else group.weights_dtype.bytes
    checkpoint = group.cache.memory.weights_bytes * group.layout.gpus * bytes_per_weight / group.weights_dtype.bytes
    return ceil(checkpoint * 1.25 / GIB) + 10


def _disruption_budget(plan: Plan, name: str) -> Manifest:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": name, "labels": labels(plan, name)},
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": selector(name)},
            # A node with a replica that never became ready can still be drained.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def _router(plan: Plan, name: str, configuration: str) -> tuple[Manifest, ...]:
    own_labels, own_selector = labels(plan, name), selector(name)
    metadata = {"name": name, "labels": own_labels}
    probe = {"httpGet": {"path": "/healthz", "port": "http"}}
    container = {
        "name": "nginx",
        "image": ROUTER_IMAGE,
        "env": [
            {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
            {"name": "CLUSTER_DOMAIN", "value": "cluster.local"},
            {"name": "NGINX_ENTRYPOINT_LOCAL_RESOLVERS", "value": "1"},
            {"name": "NGINX_ENVSUBST_OUTPUT_DIR", "value": "/etc/nginx"},
            {"name": "NGINX_ENVSUBST_FILTER", "value": "^(POD_NAMESPACE|CLUSTER_DOMAIN|NGINX_LOCAL_RESOLVERS)$"},
        ],
        "ports": [{"name": "http", "containerPort": ROUTER_PORT}],
        "resources": {"requests": {"cpu": 2, "memory": "512Mi"}, "limits": {"memory": "2Gi"}},
        "securityContext": {"allowPrivilegeEscalation": False},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}},  # until the Service has forgotten it
        "readinessProbe": {**probe, "periodSeconds": 5},
        "livenessProbe": {**probe, "periodSeconds": 10},
        "volumeMounts": [{"name": "configuration", "mountPath": "/etc/nginx/templates", "readOnly": True}],
    }
    return (
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "data": {"nginx.conf.template": configuration},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {
                "replicas": 1,  # two routers would each count only their own requests
                # Two for the moment of a change, rather than none while the old one ends its requests.
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                "selector": {"matchLabels": own_selector},
                "template": {
                    # Another configuration means another router: nginx reads it only when it starts.
                    "metadata": {"labels": own_labels, "annotations": {"capstan-configuration": digest(configuration)}},
                    "spec": {
                        "enableServiceLinks": False,
                        "automountServiceAccountToken": False,
                        "terminationGracePeriodSeconds": max(drain_s(plan, group) for group in plan.groups) + EXIT_S,
                        "containers": [container],
                        "volumes": [{"name": "configuration", "configMap": {"name": name}}],
                    },
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": own_selector, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
        },
    )


def _readme(
    plan: Plan,
    summaries: list[dict[str, object]],
    routes: tuple[ClassRoute, ...],
    notes: list[str],
    router: str,
) -> str:
    values: Mapping[str, object] = {
        "plan": plan,
        "summaries": summaries,
        "routes": routes,
        "notes": notes,
        "router": router,
        "tables": [ENGINES[engine].table for engine in dict.fromkeys(group.engine for group in plan.groups)],
        "device_label": DEVICE_LABEL,
        "devices": {group.device: safe_name(group.device) for group in plan.groups},
        "router_image": ROUTER_IMAGE,
    }
    return render("kubernetes-README.md.j2", **values)
