"""Where requests of stated groups go: shares as they are stated, and the rest by what the groups can bear.

A router that looks at load sends a group the more, the more room it has. So what is left of a class goes to its other
groups in proportion to their capacity for it, replicas over the replicas that all of the class would keep busy
(utilisation law), times the share of their time that stated requests leave them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from planner.stated.replicas import StatedReplicas
from specs.deployment.stated import ROUNDING, takers
from specs.plan import Route

LEAST_ROOM = 0.05  # of the time of a group that its stated requests keep busy
Load = Callable[[StatedReplicas, str], float]
Shares = dict[str, dict[int, float]]  # by class and group


def stated_routes(
    replicas: Sequence[StatedReplicas],
    classes: Sequence[tuple[str, str]],
    load: Load,
    group_id: Callable[[int], str],
) -> tuple[Route, ...]:
    """Routes of every (class, model). `load`: replicas of a group that all requests of a class would keep busy."""
    shares, open_to = _stated(replicas, classes)
    busy = [0.0] * len(replicas)
    for name, own in shares.items():
        for index, share in own.items():
            busy[index] += share * load(replicas[index], name) / replicas[index].group.replicas
    for name, indices in open_to.items():
        room = {index: max(LEAST_ROOM, 1.0 - busy[index]) for index in indices}
        bears = {i: room[i] * replicas[i].group.replicas / max(load(replicas[i], name), 1e-12) for i in indices}
        left, total = 1.0 - sum(shares[name].values()), sum(bears.values())
        shares[name] |= {index: left * can / total for index, can in bears.items()}
    return tuple(
        Route(request_class=name, group=group_id(index), share=share / sum(shares[name].values()))
        for name, _ in classes
        for index, share in sorted(shares[name].items())
    )


def _stated(
    replicas: Sequence[StatedReplicas], classes: Sequence[tuple[str, str]]
) -> tuple[Shares, dict[str, list[int]]]:
    """Shares that the file leaves no choice about, and by class the groups that take what is left."""
    shares: Shares = {}
    open_to: dict[str, list[int]] = {}
    for name, model in classes:
        own = [index for index, item in enumerate(replicas) if item.family.model == model]
        taking = [own[place] for place in takers(tuple(replicas[index].group for index in own), name)]
        said = {index: (replicas[index].group.serves or {}).get(name) or 0.0 for index in taking}
        shares[name] = {index: share for index, share in said.items() if share}
        left, rest = 1.0 - sum(said.values()), [index for index in taking if not said[index]]
        if left > ROUNDING and len(rest) == 1:
            shares[name][rest[0]] = left
        elif left > ROUNDING:
            open_to[name] = rest
    return shares, open_to
