"""The policies that `capstan simulate` is told on the command line, as `planner.plan_simulation.policies.Policies`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from specs.errors import InputError

if TYPE_CHECKING:
    from planner.plan_simulation.policies import Policies
    from planner.simulate.faults import Fault
    from specs.plan import Speculation

_FAULT = re.compile(r"(?P<group>.+):(?P<replica>\d+)@(?P<begin>[^-]+)-(?P<end>[^-]*)")


def policies_of(
    *,
    order: str | None,
    prefill_policy: str | None,
    preemption: str | None,
    prefix_caching: bool | None,
    host_blocks: int | None,
    max_waiting_tokens: int | None,
    predictor_error: float | None,
    speculate: str | None,
    router: str | None,
    poll: str | None,
    fail: Sequence[str],
) -> Policies:
    """What the options say; `InputError` where one cannot be read. Whether the plan can take them is told later."""
    from planner.plan_simulation.policies import Policies

    return Policies(
        order=order,
        prefill_policy=prefill_policy,
        preemption=preemption,
        prefix_caching=prefix_caching,
        host_blocks=host_blocks,
        max_waiting_tokens=max_waiting_tokens,
        predictor_error=predictor_error,
        speculation=None if speculate is None else parsed_speculation(speculate),
        router=router,
        poll_s=0.0 if poll is None else parsed_seconds("--poll", poll),
        faults=tuple(map(parsed_fault, fail)),
    )


def parsed_fault(text: str) -> Fault:
    """`group-0:1@60s-2min`: a replica that is down from one moment until another; for good without the second."""
    from planner.simulate.faults import Fault

    found = _FAULT.fullmatch(text)
    if found is None:
        raise InputError(
            f"{text!r} does not say which replica fails when",
            field="--fail",
            expected="GROUP:REPLICA@FROM-UNTIL, such as group-0:1@60s-2min, or group-0:1@60s- for good",
        )
    from_s = parsed_seconds("--fail", found["begin"])
    until_s = parsed_seconds("--fail", found["end"]) if found["end"] else math.inf
    if until_s <= from_s:
        raise InputError(f"{text!r} ends before it begins", field="--fail", expected="FROM before UNTIL")
    return Fault(found["group"], int(found["replica"]), from_s, until_s)


def parsed_speculation(text: str) -> Speculation:
    """`4:0.7` or `4:0.7:2ms`: draft tokens a step, probability of acceptance, time that drafting takes."""
    from specs.plan import Speculation

    tokens, *rest = text.split(":")
    try:
        if not 1 <= len(rest) <= 2:
            raise ValueError
        return Speculation(
            draft_tokens=int(tokens),
            acceptance=float(rest[0]),
            draft_s=parsed_seconds("--speculate", rest[1]) if rest[1:] else 0.0,
        )
    except ValueError:  # pydantic's own is one
        raise InputError(
            f"{text!r} is no draft",
            field="--speculate",
            expected="K:ACCEPTANCE or K:ACCEPTANCE:TIME, such as 4:0.7 or 4:0.7:2ms; K at least 1, ACCEPTANCE 0 to 1",
        ) from None


def parsed_seconds(option: str, text: str) -> float:
    """A time with its unit, or plain seconds."""
    from specs.quantities import parse_seconds

    try:
        seconds = float(text)
    except ValueError:
        try:
            return parse_seconds(text)
        except InputError as error:
            error.field = option
            raise
    if not (math.isfinite(seconds) and seconds >= 0):
        raise InputError(f"{text!r} is not a time", field=option, expected="0 s or more")
    return seconds
