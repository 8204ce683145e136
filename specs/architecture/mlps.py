"""What transforms each token alone: a dense MLP, or a mixture of experts with optional shared expert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specs.architecture.operators import AllReduce, Elementwise, Experts, Linear, Operator
from specs.architecture.weights import Segment, WeightTensor, linear_tensors


@dataclass(frozen=True)
class DenseMLP:
    """down(act(gate x) * up x), or down(act(up x)) where not gated."""

    hidden_size: int
    intermediate_size: int
    gated: bool = True
    bias: bool = False
    activation: str = "silu"
    quantised: bool = True

    def operators(self) -> tuple[Operator, ...]:
        """Up, activation, down, all-reduce."""
        return (*self.projections(), AllReduce(self.hidden_size))

    def projections(self, prefix: str = "") -> tuple[Operator, ...]:
        """The operators without the all-reduce, for use beside experts whose sum is reduced once."""
        hidden, inner, quantised = self.hidden_size, self.intermediate_size, self.quantised
        ways = 2 if self.gated else 1
        up = "gate_up_proj" if self.gated else "up_proj"
        pieces = (Segment(inner, inner),) * ways  # gate | up, each cut alone
        # Gated: reads two rows, writes one: 3/2 of an element read and written.
        return (
            Linear(f"{prefix}{up}", hidden, ways * inner, "column", quantised, self.bias, pieces),
            Elementwise(f"{prefix}activation", (ways + 1) * inner // 2, "column"),
            Linear(f"{prefix}down_proj", inner, hidden, "row", quantised, self.bias),
        )

    def tensors(self, prefix: str = "") -> tuple[WeightTensor, ...]:
        """gate_proj (where gated), up_proj, down_proj."""
        hidden, inner = self.hidden_size, self.intermediate_size
        tensors: list[WeightTensor] = []
        for role in ("gate_proj", "up_proj") if self.gated else ("up_proj",):
            tensors += linear_tensors(
                prefix + role, hidden, inner, shard="column", quantised=self.quantised, bias=self.bias
            )
        tensors += linear_tensors(
            f"{prefix}down_proj", inner, hidden, shard="row", quantised=self.quantised, bias=self.bias
        )
        return tuple(tensors)

    def widths(self) -> tuple[tuple[str, int], ...]:
        """Widths that a tensor-parallel size must divide."""
        return (("intermediate columns", self.intermediate_size),)


@dataclass(frozen=True)
class MixtureOfExperts:
    """A router that sends each token to `experts_per_token` of `experts`, and an optional expert that all pass."""

    hidden_size: int
    experts: int
    experts_per_token: int
    intermediate_size: int  # of one routed expert
    gated: bool = True
    activation: str = "silu"
    expert_bias: bool = False
    # The checkpoint holds all experts in one tensor (experts, in, out) or (experts, out, in)
    stacked: Literal["no", "in_out", "out_in"] = "no"
    latent_size: int | None = None  # routed experts work on a projection of the hidden state of this width
    shared_intermediate_size: int = 0  # of the shared experts together; 0 = none
    shared_gate: bool = False  # the shared expert's output is scaled by the sigmoid of one score per token
    shared_quantised: bool = True
    shared_reduced_apart: bool = False  # its sum over ranks is needed alone, not only with the routed one
    router_bias: bool = False
    router_scales: bool = False  # learned scales of the router's input and of every expert's score (Gemma 4)
    correction_bias: bool = False  # added to the scores for the choice of experts only (DeepSeek-V3)
    scoring: Literal["softmax", "sigmoid", "softmax_of_chosen"] = "softmax"
    normalise: bool = True  # chosen scores are divided by their sum
    scaling: float = 1.0  # of the routed sum
    expert_groups: int = 1
    expert_groups_per_token: int = 1
    quantised: bool = True

    @property
    def expert_hidden_size(self) -> int:
        """Width of a routed expert's input and output."""
        return self.hidden_size if self.latent_size is None else self.latent_size

    def shared(self) -> DenseMLP | None:
        """The shared expert as a dense MLP."""
        if not self.shared_intermediate_size:
            return None
        return DenseMLP(
            self.hidden_size,
            self.shared_intermediate_size,
            gated=self.gated,
            activation=self.activation,
            quantised=self.shared_quantised,
        )

    def operators(self) -> tuple[Operator, ...]:
        """Router, choice, (latent projection,) experts, (shared expert,) one all-reduce."""
        hidden, latent = self.hidden_size, self.latent_size
        operators: list[Operator] = [
            Linear("router", hidden, self.experts, "replicated", False, self.router_bias),
            Elementwise("top_k", self.experts, "replicated"),
        ]
        if latent is not None:
            operators.append(Linear("latent_down_proj", hidden, latent, "replicated", self.quantised, False))
        operators.append(
            Experts(
                self.experts,
                self.experts_per_token,
                self.expert_hidden_size,
                self.intermediate_size,
                self.quantised,
                self.gated,
                self.expert_bias,
            )
        )
        if latent is not None:
            operators.append(Linear("latent_up_proj", latent, hidden, "replicated", self.quantised, False))
        shared = self.shared()
        if shared is not None:
            operators += shared.projections("shared_")
        if self.shared_gate:
            operators.append(Linear("shared_gate", hidden, 1, "replicated", False, False))
        operators += [AllReduce(hidden)] * (2 if self.shared_reduced_apart else 1)
        return tuple(operators)

    def tensors(self) -> tuple[WeightTensor, ...]:
        """router, correction_bias, latent projections, experts, shared expert."""
        tensors = [
            *linear_tensors(
                "router", self.hidden_size, self.experts, shard="replicated", quantised=False, bias=self.router_bias
            )
        ]
        if self.router_scales:
            tensors.append(WeightTensor("router_input_scale", (self.hidden_size,), None, False))
            tensors.append(WeightTensor("router_expert_scale", (self.experts,), None, False))
        if self.correction_bias:
            tensors.append(WeightTensor("correction_bias", (self.experts,), None, False))
        if self.latent_size is not None:
            latent, hidden, quantised = self.latent_size, self.hidden_size, self.quantised
            tensors += linear_tensors("latent_down_proj", hidden, latent, shard="replicated", quantised=quantised)
            tensors += linear_tensors("latent_up_proj", latent, hidden, shard="replicated", quantised=quantised)
        tensors += self._experts() if self.stacked == "no" else self._stacked_experts()
        shared = self.shared()
        if shared is not None:
            tensors += shared.tensors("shared_")
        if self.shared_gate:
            tensors += linear_tensors("shared_gate", self.hidden_size, 1, shard="replicated", quantised=False)
        return tuple(tensors)

    def _experts(self) -> list[WeightTensor]:
        width, inner, count = self.expert_hidden_size, self.intermediate_size, self.experts
        up_roles = ("expert_gate_proj", "expert_up_proj") if self.gated else ("expert_up_proj",)
        tensors = [
            WeightTensor(f"{role}.weight", (inner, width), 0, self.quantised, count, expert_axis=True)
            for role in up_roles
        ]
        tensors.append(
            WeightTensor("expert_down_proj.weight", (width, inner), 1, self.quantised, count, expert_axis=True)
        )
        return tensors

    def _stacked_experts(self) -> list[WeightTensor]:
        """One tensor for gate and up, one for down; whether gate and up columns alternate is the family's matter."""
        width, inner, count = self.expert_hidden_size, self.intermediate_size, self.experts
        ways = 2 if self.gated else 1
        up, pieces = ways * inner, (Segment(inner, inner),) * ways  # gate | up, each cut alone
        if self.stacked == "in_out":
            shapes, axes = ((count, width, up), (count, inner, width)), (2, 1)
        else:
            shapes, axes = ((count, up, width), (count, width, inner)), (1, 2)
        tensors = [
            WeightTensor("experts_gate_up_proj", shapes[0], axes[0], self.quantised, expert_axis=True, segments=pieces),
            WeightTensor("experts_down_proj", shapes[1], axes[1], self.quantised, expert_axis=True),
        ]
        if self.expert_bias:
            tensors += [
                WeightTensor("experts_gate_up_proj_bias", (count, up), 1, False, expert_axis=True, segments=pieces),
                WeightTensor("experts_down_proj_bias", (count, width), None, False, expert_axis=True),
            ]
        return tensors

    def widths(self) -> tuple[tuple[str, int], ...]:
        """Widths that a tensor-parallel size must divide whatever happens to the routed experts."""
        if not self.shared_intermediate_size:
            return ()
        return (("shared-expert columns", self.shared_intermediate_size),)


MLP = DenseMLP | MixtureOfExperts
