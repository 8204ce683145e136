"""Why there is no plan: the user's statements in conflict, and the least change to each that mends it.

Only what the user wrote is questioned: what the pools hold, the budget, limits on devices, power and failing nodes,
headroom, confidence, pins, each SLO limit, and the rate. Each question is asked by planning again without the
statement, so an answer is as good as a plan. A statement whose removal alone mends the spec is in every conflict; of
the others, a deletion filter keeps those without which what is left has a plan: the set that is named is irreducible.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from planner.answers.conflict_search import TO_ANSWER, Progress, Search
from planner.answers.conflict_words import demand, listed, nearest_miss, stock
from planner.answers.resolve import changed
from planner.answers.statements import Statement, factors, scaled, statements, with_section
from planner.optimize.decision import Decision
from planner.plan_simulation.traffic import at_rate
from planner.problem import Problem
from specs.deployment import DeploymentSpec
from specs.engine_rules import capable
from specs.errors import InputError, NoPlanError

# Simulations to find the statements in conflict, how much traffic can be served, and the mends of statements.
TO_FIND, TO_SLOW, TO_MEND = 400, 200, 600
ONLY_BOOTS = "(then it boots; whether it keeps every promise was not tried)"
LARGER = (2, 4, 8, 16, 32)  # times a pool's stock
FEWER = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)


def explain_conflict(problem: Problem, progress: Progress = lambda text: None) -> NoPlanError:
    """The error to raise for a problem that has no plan."""
    homeless = [name for name in problem.spec.models if not _boots(problem, name)]
    if homeless:
        return _homeless(problem, homeless[0], progress)
    search = Search(problem, progress, TO_FIND)
    every = list(statements(problem.spec, search))
    alone = _alone(search, every)
    conflict = [statement.text for statement in _irreducible(search, every, [statement for statement, _ in alone])]
    mends = []
    for statement, decision in alone:
        search.left = max(TO_ANSWER, TO_MEND // len(alone))
        if (mend := search.mended(partial(statement.mend, decision))) is not None:
            mends.append(mend)
    search.left = TO_SLOW
    slower = search.mended(partial(_slower, search)) if search.rate_matters() else None
    if not mends:
        search.left = TO_MEND
        together = search.mended(partial(_corrected, search, every))
        if together is None and slower is None:
            together = search.mended(partial(_together, search))
        mends += [] if together is None else [together]
    if slower is not None:
        conflict.append(demand(problem.spec))
        mends.append(slower)
    message = "no plan satisfies this spec"
    if any(item.stages_over for item in problem.spec.choices.models.values()):
        message += " with the cuts of layers over several pools that were tried (`groups` can state others)"
    return NoPlanError(message, tuple(conflict), tuple(mends))


def _boots(problem: Problem, model: str) -> bool:
    return any(family.model == model for family in (*problem.families, *problem.role_families))


def _homeless(problem: Problem, model: str, progress: Progress) -> NoPlanError:
    """Of a model that boots on none of the devices: no promise is to blame, only what it is, its pins and the pools."""
    nearest, spec = nearest_miss(problem, model), problem.spec
    detail = f"; nearest miss: {nearest}" if nearest else ""
    found = [f"models.{model}.architecture: {problem.facts.architectures[model].name}"]
    pins, together = _pins_to_boot(problem, model, progress)
    pinned = spec.choices.of(model)
    found += [f"choices.{model}.{name}: {listed(getattr(pinned, name))}" for name in pins]
    freed = [f"choices.{model}.{name}: auto" for name in pins]
    mends = [f"{text} {ONLY_BOOTS}" for text in ([f"together: {', '.join(freed)}"] if together else freed)]
    found += [f"hardware.pools: {stock(pool)}" for pool in spec.hardware.pools]
    for index, pool in enumerate(spec.hardware.pools):
        progress(f"what if {pool.name} held more")
        if (count := _count_to_boot(problem, model, index)) is not None:
            mends.append(f"hardware.pools[{index}] {pool.name}: count: {count} {ONLY_BOOTS}")
    progress("what if stages stood in several pools")
    if over := _pools_to_boot_over(problem, model):
        mends.append(f"choices.{model}.stages_over: {listed(over)} {ONLY_BOOTS}")
    message = f"models.{model} boots on none of the declared devices{detail}"
    return NoPlanError(message, tuple(found), tuple(mends))


def _pins_to_boot(problem: Problem, model: str, progress: Progress) -> tuple[list[str], bool]:
    """The pins without any one of which the model boots; or all of them, where they have to give way together."""
    spec = problem.spec
    pinned = spec.choices.of(model)
    pins = [name for name in pinned.model_dump(exclude_none=True) if name != "stages_over"]

    def boots_without(names: list[str]) -> bool:
        progress(f"what if choices.{model} left open: {', '.join(names)}")
        own = pinned.model_copy(update=dict.fromkeys(names))
        choices = spec.choices.model_copy(update={"models": {**spec.choices.models, model: own}})
        try:
            return _boots(changed(problem, spec.model_copy(update={"choices": choices})), model)
        except InputError:
            return False

    alone = [name for name in pins if boots_without([name])]
    if alone or len(pins) < 2 or not boots_without(pins):
        return alone, False
    return pins, True


def _pools_to_boot_over(problem: Problem, model: str) -> tuple[str, ...]:
    """All pools, where the stages of one replica may stand in several of them and the model then boots."""
    spec, pinned = problem.spec, problem.spec.choices.of(model)
    over = tuple(pool.name for pool in spec.hardware.pools)
    planned = spec.objective.quantity not in ("energy", "carbon") and not spec.limits.survive_node_failures
    able = any(capable(engine, "unlike_stages") for engine in spec.choices.engine)
    if len(over) < 2 or pinned.stages_over or not planned or not able or spec.choices.disaggregation == "always":
        return ()
    own = pinned.model_copy(update={"stages_over": over})
    choices = spec.choices.model_copy(update={"models": {**spec.choices.models, model: own}})
    try:
        return over if _boots(changed(problem, spec.model_copy(update={"choices": choices})), model) else ()
    except InputError:
        return ()


def _count_to_boot(problem: Problem, model: str, index: int) -> int | None:
    """The least of some multiples of a pool's stock, in nodes of eight at most, on which the model boots."""
    spec = problem.spec
    pool = spec.hardware.pools[index]
    for times in LARGER:
        count = pool.count * times
        size = pool.gpus_per_node if pool.count >= pool.gpus_per_node > 1 else min(8, count)
        larger = pool.model_copy(update={"count": -(-count // size) * size, "gpus_per_node": size})
        pools = tuple(larger if item is pool else item for item in spec.hardware.pools)
        grown = spec.model_copy(update={"hardware": spec.hardware.model_copy(update={"pools": pools})})
        try:
            if _boots(changed(problem, grown), model):
                return larger.count
        except InputError:
            return None
    return None


def _alone(search: Search, every: list[Statement]) -> list[tuple[Statement, Decision]]:
    """The statements without any one of which there is a plan, each with that plan."""
    found = []
    for statement in every:
        search.progress(f"what if not {statement.text}")
        if (decision := search.plan(statement.relaxed)) is not None:
            found.append((statement, decision))
    return found


def _irreducible(search: Search, every: list[Statement], needed: list[Statement]) -> list[Statement]:
    """The statements in conflict: `needed` ones, which are in every conflict, and what keeps them company.

    The other statements are dropped at once where there is no plan without them either, else one by one. All of them
    are named where there is no plan even without any.
    """
    stated = search.problem.spec
    others = [statement for statement in every if statement not in needed]
    kept, spec = list(others), stated
    for group in _groups(others, whole=bool(needed)):
        search.progress("which statements are part of the conflict")
        merged = spec
        for statement in group:
            merged = merged_specs(stated, merged, statement.relaxed)
        if search.plan(merged) is None:
            kept = [statement for statement in kept if statement not in group]
            spec = merged
        if not kept:
            break
    named = {statement.text for statement in (*needed, *kept)} or {statement.text for statement in others}
    return [statement for statement in every if statement.text in named]


def _groups(others: list[Statement], *, whole: bool) -> list[list[Statement]]:
    """All of them together first (`whole`), then each alone."""
    single = [[statement] for statement in others]
    return [others, *single] if whole and len(others) > 1 else single


def _corrected(search: Search, every: list[Statement]) -> str | None:
    """Where several statements have to give way: a set of them that is no larger than needed, and what a plan uses.

    Without all of them there is a plan; they are taken back one by one, limits on latency first, while there still is.
    None where a limit on latency has to give way, too.
    """
    stated = search.problem.spec
    given_up = [statement for statement in every if statement.used is not None]
    search.progress("which statements would have to give way together")

    def without(dropped: list[Statement]) -> DeploymentSpec:
        spec = stated
        for statement in dropped:
            spec = merged_specs(stated, spec, statement.relaxed)
        return spec

    if not given_up or search.plan(without(given_up)) is None:
        return None
    for statement in [*given_up]:
        fewer = [other for other in given_up if other is not statement]
        if search.plan(without(fewer)) is not None:
            given_up = fewer
    spec = without(given_up)
    decision = search.plan(spec, whole=True, best=True) or search.plan(spec, whole=True)
    if decision is None:
        return None
    return "together: " + ", ".join(statement.used(decision) for statement in given_up if statement.used is not None)


def _together(search: Search) -> str | None:
    """Where no statement alone mends the spec: all latency limits softened alike, and the budget this takes."""
    search.progress("what if every latency limit were softer")
    spec = search.problem.spec

    def softened(factor: float) -> DeploymentSpec:
        classes = tuple(
            traffic if traffic.slo is None else traffic.model_copy(update={"slo": scaled(traffic.slo, factor)})
            for traffic in spec.traffic
        )
        return with_section(spec, "limits", budget_usd_per_hour=None).model_copy(update={"traffic": classes})

    limits = [(item.metric, item.limit_s) for t in spec.traffic if t.slo for item in t.slo.percentiles]
    limits += [item for t in spec.traffic if t.slo for item in t.slo.joint.items()]
    ladder = min((factors(*limit) for limit in limits), key=len, default=())
    factor = search.first(ladder, softened)
    if factor is None:
        return None
    mend, budget = f"together: every latency limit times {factor:g}", spec.limits.budget_usd_per_hour
    if budget is None or spec.objective.quantity != "cost":
        return mend
    decision = search.plan(softened(factor), whole=True, best=True) or search.plan(softened(factor), whole=True)
    if decision is None or decision.value <= budget:
        return mend
    return f"{mend}, and limits.budget: ${math.ceil(decision.value * 100) / 100:.2f}/h"


def _slower(search: Search) -> str | None:
    """The largest share of the declared traffic that has a plan."""
    search.progress("how much of the traffic can be served")
    problem = search.problem

    def at_share(share: float) -> DeploymentSpec:
        return at_rate(problem.spec, problem.base_dir, share)

    share = search.first(FEWER, at_share)
    if share is None:
        return None
    return f"traffic: {100 * share:g}% of the declared rate ({demand(at_share(share))})"


def merged_specs(stated: DeploymentSpec, base: DeploymentSpec, relaxed: DeploymentSpec) -> DeploymentSpec:
    """`base` with what `relaxed` changed in what the user `stated`; both were made from that, one change at a time."""

    def merge(stated: Any, base: Any, relaxed: Any) -> Any:
        if relaxed == stated:
            return base
        if isinstance(stated, dict) and isinstance(base, dict) and isinstance(relaxed, dict):
            names = [n for n in {**base, **relaxed} if n not in stated or (n in base and n in relaxed)]
            return {
                name: merge(stated.get(name), base.get(name, stated.get(name)), relaxed.get(name, stated.get(name)))
                for name in names
            }
        lists = isinstance(stated, list) and isinstance(base, list) and isinstance(relaxed, list)
        if lists and len(stated) == len(base) == len(relaxed):
            return [merge(*parts) for parts in zip(stated, base, relaxed, strict=True)]
        return relaxed

    merged = merge(*(spec.model_dump(mode="json") for spec in (stated, base, relaxed)))
    return DeploymentSpec.model_validate(merged)
