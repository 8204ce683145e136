"""Members of a programme that no optimum misses are left out: the tree that is searched for ties grows with them."""

from __future__ import annotations

from collections.abc import Iterable

from planner.optimize.parts import Column, OptimisticFamily


def undominated(columns: Iterable[Column]) -> tuple[Column, ...]:
    """Of columns that take the same devices in the same role for the same classes, those with the largest share.

    No plan misses the others: each replica of theirs could be one of the better column.
    """
    best: dict[tuple[object, ...], Column] = {}
    for column in columns:
        alone = (column.key,) if column.watts else ()
        classes = tuple(name for name, _ in column.shares)
        kind = (column.model, column.pool, column.gpus, column.elsewhere, column.role, column.channel, classes, alone)
        if kind not in best or column.shares > best[kind].shares:
            best[kind] = column
    return tuple(sorted(best.values(), key=lambda column: column.key))


def least_loaded(families: Iterable[OptimisticFamily]) -> tuple[OptimisticFamily, ...]:
    """Without prefill and decode families that another one on the same devices beats by its law for every class.

    No optimum misses them while the better one is as optimistic; when that one is priced, they are asked for.
    """
    families = tuple(families)
    kept: dict[tuple[object, ...], list[OptimisticFamily]] = {}
    for family in sorted(families, key=lambda family: sum(load for _, load in family.loads)):
        alone = (family.key,) if family.role == "unified" or family.watts else ()
        rivals = kept.setdefault((family.model, family.pool, family.gpus, family.role, family.channel, alone), [])
        if not any(_no_worse(rival, family) for rival in rivals):
            rivals.append(family)
    chosen = {family.key for rivals in kept.values() for family in rivals}
    return tuple(family for family in families if family.key in chosen)


def _no_worse(family: OptimisticFamily, other: OptimisticFamily) -> bool:
    misses = dict(other.misses)
    return all(load <= theirs for (_, load), (_, theirs) in zip(family.loads, other.loads, strict=True)) and all(
        miss <= misses.get(name, 0.0) for name, miss in family.misses
    )
