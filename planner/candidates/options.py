"""What a replica does beside its layout: role, caching of prefixes, speculation, order of service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specs.deployment import ModelChoices
from specs.engine_rules import capable
from specs.plan import Speculation

Role = Literal["unified", "prefill", "decode"]
Order = Literal["fcfs", "priority"]
Crossing = Literal["network", "node"]


@dataclass(frozen=True, slots=True)
class Options:
    """The neutral values are those of a replica that nothing was said about."""

    role: Role = "unified"
    crossing: Crossing = "network"  # of a role: how KV caches are handed over
    prefix_caching: bool = False
    host_blocks: int = 0  # KV blocks of the host tier
    speculation: Speculation | None = None
    order: Order = "fcfs"

    @property
    def draft_tokens(self) -> int:
        """Tokens proposed in a step; 0 without speculation."""
        return 0 if self.speculation is None else self.speculation.draft_tokens

    @property
    def key_parts(self) -> tuple[str, ...]:
        """Parts of a family's key: one for each option that is not neutral."""
        parts = []
        if self.role != "unified":
            parts.append(self.role if self.crossing == "network" else f"{self.role}-in-node")
        if self.prefix_caching:
            parts.append("prefixes")
        if self.host_blocks:
            parts.append(f"host-{self.host_blocks}")
        if self.speculation is not None:
            parts.append(f"drafts-{self.speculation.draft_tokens}")
        if self.order != "fcfs":
            parts.append(self.order)
        return tuple(parts)


NEUTRAL = Options()


@dataclass(frozen=True, slots=True)
class Asked:
    """Which options the traffic of a model gives a meaning."""

    prefixes: bool = False  # prompts begin alike
    priorities: bool = False  # requests have unlike priorities


NOTHING = Asked()


def usual_options(engine: str, asked: Asked, choices: ModelChoices) -> Options:
    """What a replica of `engine` does where nothing is left to decide: no plan is better for doing without."""
    wanted = asked.prefixes if choices.prefix_caching is None else choices.prefix_caching
    caching = wanted and capable(engine, "prefix_caching")
    order: Order = "priority" if asked.priorities and capable(engine, "priority") else "fcfs"
    return Options(prefix_caching=caching, order=order)
