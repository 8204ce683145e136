"""The bytes per second that a plan sends from node to node: between stages, between experts, from prefill to decode.

Rates are those of the plan's simulated window. A group's tokens are shared evenly by its replicas, what a prefill
group hands over evenly by the replicas of its decode group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from planner.cost.roofline import ACTIVATION_BYTES
from specs.architecture import Architecture, load_architecture
from specs.architecture.mlps import MixtureOfExperts
from specs.deployment.cables import node_name
from specs.plan import Plan, ReplicaGroup, ReplicaPlacement


@dataclass(frozen=True, slots=True)
class Flow:
    """Bytes per second from one node to another. `what`: in the user's words."""

    source: str
    target: str
    bytes_per_s: float
    what: str


def flows(plan: Plan) -> tuple[Flow, ...]:
    """All flows between unlike nodes, those of the same ends and kind added up; in order of their names."""
    rates = {item.group: (item.prompt_tokens_per_s, item.output_tokens_per_s) for item in plan.predictions.groups}
    total: dict[tuple[str, str, str], float] = defaultdict(float)
    for group in plan.groups:
        if group.hands_over_to is None and all(len(_nodes(group, replica)) == 1 for replica in group.placement):
            continue
        prompt, output = rates[group.id]
        architecture = load_architecture(plan.architectures[group.model], name=group.model)
        tokens = (prompt + output) / group.replicas
        found = [*_between_stages(group, architecture, tokens), *_between_experts(group, architecture, tokens)]
        if group.hands_over_to is not None:
            found += _handed_over(group, plan.group(group.hands_over_to), architecture, prompt)
        for flow in found:
            if flow.source != flow.target and flow.bytes_per_s > 0:
                total[flow.source, flow.target, flow.what] += flow.bytes_per_s
    return tuple(Flow(a, b, rate, what) for (a, b, what), rate in sorted(total.items()))


def _nodes(group: ReplicaGroup, replica: ReplicaPlacement) -> list[str]:
    """The nodes of a replica, each once, in rank order."""
    return list(dict.fromkeys(_node_of_rank(group, replica)))


def _node_of_rank(group: ReplicaGroup, replica: ReplicaPlacement) -> list[str]:
    return [node_name(pool, slot.node) for pool, slot in group.places(replica)]


def _between_stages(group: ReplicaGroup, architecture: Architecture, tokens_per_s: float) -> Iterator[Flow]:
    """Every rank of a stage sends the hidden states of its tokens to its like in the next one."""
    ranks = group.layout.tensor_parallel * group.layout.attention_data_parallel
    rate = tokens_per_s / group.layout.attention_data_parallel * architecture.hidden_size * ACTIVATION_BYTES
    for replica in group.placement:
        nodes = _node_of_rank(group, replica)
        for index in range(len(nodes) - ranks):
            yield Flow(nodes[index], nodes[index + ranks], rate, f"{group.id}: hidden states between stages")


def _between_experts(group: ReplicaGroup, architecture: Architecture, tokens_per_s: float) -> Iterator[Flow]:
    """Where experts lie on several nodes, a token goes once to each other one that has experts of it, and back."""
    mixtures = [layer.mlp for layer in architecture.layers if isinstance(layer.mlp, MixtureOfExperts)]
    if group.layout.expert_parallel == 1 or not mixtures:
        return
    for replica in group.placement:
        nodes = sorted(_nodes(group, replica))
        if len(nodes) == 1 or group.layout.pipeline_parallel > 1:
            continue
        own_tokens = tokens_per_s / len(nodes)
        rate = sum(
            own_tokens * (1.0 - (1.0 - 1.0 / len(nodes)) ** mlp.experts_per_token) * mlp.expert_hidden_size
            for mlp in mixtures
        )
        for a in nodes:
            for b in nodes:
                yield Flow(a, b, 2.0 * rate * ACTIVATION_BYTES, f"{group.id}: tokens to experts and back")


def _handed_over(
    sender: ReplicaGroup, receiver: ReplicaGroup, architecture: Architecture, prompt_tokens_per_s: float
) -> Iterator[Flow]:
    """KV caches of the prompts, a shard to every rank that keeps one."""
    ranks = receiver.layout.tensor_parallel
    per_token = ranks * architecture.sequence_bytes(1024, receiver.cache.kv_dtype, ranks) / 1024
    sources = [node for replica in sender.placement for node in _node_of_rank(sender, replica)]
    targets = [node for replica in receiver.placement for node in _node_of_rank(receiver, replica)]
    rate = prompt_tokens_per_s * per_token / (len(sources) * len(targets))
    for a in sources:
        for b in targets:
            yield Flow(a, b, rate, f"{sender.id} to {receiver.id}: KV caches")
