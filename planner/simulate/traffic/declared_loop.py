"""A declared closed loop: what its clients send."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from planner.simulate.model import IntArray
from planner.simulate.traffic.declared import class_generator
from planner.simulate.traffic.lengths import at_field, draw_request_lengths
from specs.deployment import DeploymentSpec
from specs.errors import NotHonouredError

REQUESTS_EACH = 10  # of every client where the spec does not say: what serving benchmarks send


@dataclass(frozen=True)
class DeclaredLoop:
    """Arguments of `simulate_closed_loop`: requests in the order of sending, the first `warmup` of them not counted."""

    concurrency: int
    prompt_tokens: IntArray
    output_tokens: IntArray
    warmup: int


def declared_closed_loop(spec: DeploymentSpec, base_dir: str | Path, *, seed: int = 0) -> DeclaredLoop | None:
    """The requests of a spec whose only class is a closed loop; None where no class is one.

    As serving benchmarks do it: all clients start together at 0, each sends its next request when its last one ends,
    ten requests for each client and none to warm up unless the spec says otherwise. Lengths are drawn with `seed`;
    histogram files are found relative to `base_dir`. `NotHonouredError` for a closed loop beside other classes.
    """
    loops = [index for index, traffic in enumerate(spec.traffic) if traffic.closed_loop is not None]
    if not loops:
        return None
    traffic = spec.traffic[loops[0]]
    loop = traffic.closed_loop
    assert loop is not None
    with at_field(f"traffic[{loops[0]}]"):
        if len(spec.traffic) > 1:
            raise NotHonouredError(
                f"{len(spec.traffic) - 1} classes stand beside the closed loop {traffic.name!r}",
                field="closed_loop",
                expected="a closed loop alone; it is simulated by itself",
            )
        counted = loop.requests if loop.requests is not None else REQUESTS_EACH * loop.concurrency
        prompt_tokens, output_tokens = draw_request_lengths(
            traffic,
            loop.warmup + counted,
            Path(base_dir),
            spec.models[traffic.model].max_context_tokens,
            class_generator(seed, traffic),
        )
    return DeclaredLoop(loop.concurrency, prompt_tokens, output_tokens, loop.warmup)
