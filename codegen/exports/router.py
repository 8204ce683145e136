"""The router that a plan assumes, as an nginx configuration: classes are split over groups, then over replicas.

Inside a group a request goes to the replica with the fewest open connections (`least_conn`), which is the plan's
`least_outstanding`: one request is one connection. The counts are shared by all worker processes (`zone`). A class
that goes to several groups is split by a hash of the request's id, so that the plan's shares hold on average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from codegen.exports.directory import render
from codegen.exports.names import safe_names
from specs.errors import InputError
from specs.plan import Plan


@dataclass(frozen=True)
class Upstream:
    """A replica group: its name in the configuration and the addresses of its replicas."""

    name: str
    servers: tuple[str, ...]


@dataclass(frozen=True)
class Branch:
    """One group's part of a class. `percent` is text with two decimals, or "*" for the rest."""

    percent: str
    upstream: str


@dataclass(frozen=True)
class ClassRoute:
    """Where the requests of one class go. Clients reach it under `/path/`."""

    request_class: str
    path: str
    model: str
    branches: tuple[Branch, ...]
    variable: str


def class_routes(plan: Plan, group_names: Mapping[str, str]) -> tuple[ClassRoute, ...]:
    """Routes of every class, in the plan's order."""
    by_class: dict[str, list[tuple[str, float]]] = {}
    for route in plan.routes:
        by_class.setdefault(route.request_class, []).append((route.group, route.share))
    paths = safe_names(by_class)
    return tuple(
        ClassRoute(
            request_class,
            paths[request_class],
            plan.group(shares[0][0]).model,
            _branches(request_class, shares, group_names),
            f"$group_of_class_{index}",
        )
        for index, (request_class, shares) in enumerate(by_class.items())
    )


def _branches(request_class: str, shares: list[tuple[str, float]], names: Mapping[str, str]) -> tuple[Branch, ...]:
    """Shares in hundredths of a percent, as fine as nginx's `split_clients` goes; the last one takes the rest."""
    branches = []
    left = 10_000
    for group, share in shares[:-1]:
        part = round(share * 10_000)
        left -= part
        if part < 1 or left < 1:
            raise InputError(
                f"the router splits to 0.01 %, and the shares of class {request_class!r} are finer", field="routes"
            )
        branches.append(Branch(f"{part / 100:.2f}%", names[group]))
    return (*branches, Branch("*", names[shares[-1][0]]))


def nginx_configuration(
    plan: Plan,
    upstreams: Sequence[Upstream],
    routes: Sequence[ClassRoute],
    *,
    port: int,
    resolver: str | None = None,
    workers: int | None = None,
) -> str:
    """The whole nginx.conf, with `workers` processes (None: one per core).

    With `resolver`, servers are names looked up again and again (nginx 1.27.3 or later).
    """
    same_everywhere = len({route.branches for route in routes}) == 1
    return render(
        "nginx.conf.j2",
        plan=plan,
        upstreams=upstreams,
        routes=routes,
        default=routes[0] if same_everywhere else None,
        least_conn=plan.router == "least_outstanding",
        port=port,
        resolver=resolver,
        workers=workers or "auto",
    )
