"""Roles of a plan's groups that fit together: who hands requests over to whom, and who takes arrivals."""

from __future__ import annotations

from specs.errors import InputError, nearest_names
from specs.plan import Plan, ReplicaGroup


def check_handoffs(plan: Plan) -> None:
    """A prefill group names a decode group of its model and KV cache, no other group does, and no route leads to one.

    Raises `InputError` with the field.
    """
    for index, group in enumerate(plan.groups):
        field = f"groups[{index}].hands_over_to"
        if group.role == "prefill":
            _check_target(plan, group, field)
        elif group.hands_over_to is not None:
            raise InputError(
                f"{group.id} is a {group.role} group, and hands nothing over",
                field=field,
                expected=f"null, or {group.id} with role prefill",
            )
    decode = {group.id for group in plan.groups if group.role == "decode"}
    for index, route in enumerate(plan.routes):
        if route.group in decode:
            raise InputError(
                f"class {route.request_class} is routed to {route.group}, a decode group: it takes what is handed over",
                field=f"routes[{index}].group",
                expected="a prefill or unified group",
            )


def _check_target(plan: Plan, group: ReplicaGroup, field: str) -> None:
    choices = [other.id for other in plan.groups if other.role == "decode" and other.model == group.model]
    expected = f"the id of a decode group of model {group.model}" + (f": {' | '.join(choices)}" if choices else "")
    if group.hands_over_to is None:
        raise InputError(f"prefill group {group.id} hands over to none", field=field, expected=expected)
    if group.hands_over_to not in choices:
        raise InputError(
            f"{group.hands_over_to!r} is none",
            field=field,
            expected=expected,
            nearest=nearest_names(group.hands_over_to, choices),
        )
    own, other = group.cache.kv_dtype, plan.group(group.hands_over_to).cache.kv_dtype
    if own != other:
        raise InputError(
            f"{group.id} keeps its KV cache in {own}, {group.hands_over_to} in {other}",
            field=field,
            expected="groups with one kv_dtype",
        )
