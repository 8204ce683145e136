"""The router's configuration: every replica is reachable, shares are the plan's, tokens are not held back."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_fixture import changed, chat_group, chat_plan, fleet_plan, packed, plan_of

from codegen.exports import export_plan
from codegen.exports.names import LONGEST, safe_name, safe_names
from specs.errors import InputError
from specs.plan import Plan, Route

Block = list["tuple[list[str], Block | None]"]


def parse(text: str) -> Block:
    """A small reader of nginx's grammar: directives end in `;` or hold a block; anything else raises."""
    tokens = re.findall(r'"(?:[^"\\]|\\.)*"|#[^\n]*|[{};]|(?:\$\{[^}]*\}|[^\s{};#"])+', text)
    tokens = [token for token in tokens if not token.startswith("#")]
    position = 0

    def block(depth: int) -> Block:
        nonlocal position
        directives: Block = []
        words: list[str] = []
        while position < len(tokens):
            token = tokens[position]
            position += 1
            if token == ";":
                assert words
                directives.append((words, None))
                words = []
            elif token == "{":
                assert words
                directives.append((words, block(depth + 1)))
                words = []
            elif token == "}":
                assert depth > 0
                assert not words
                return directives
            else:
                words.append(token)
        assert depth == 0
        assert not words
        return directives

    return block(0)


def configuration(plan: Plan) -> str:
    return export_plan(plan, "vllm").files["nginx.conf"]


def http_of(text: str) -> Block:
    (found,) = [inner for words, inner in parse(text) if words == ["http"]]
    assert found is not None
    return found


def inside(block: Block, *start: str) -> list[tuple[list[str], Block]]:
    return [(words, inner) for words, inner in block if words[0] in start and inner is not None]


def shares(text: str) -> dict[str, dict[str, float]]:
    """Path -> upstream -> share, read back from the configuration."""
    http = http_of(text)
    split: dict[str, dict[str, float]] = {}
    for words, inner in inside(http, "split_clients"):
        parts = {line[1]: line[0] for line, _ in inner}
        stated = {name: float(part.rstrip("%")) / 100 for name, part in parts.items() if part != "*"}
        rest = {name: 1 - sum(stated.values()) for name, part in parts.items() if part == "*"}
        split[words[2]] = stated | rest
    found = {}
    for _, server in inside(http, "server"):
        for words, inner in inside(server, "location"):
            for line, _ in inner:
                if line[0] == "proxy_pass":
                    target = line[1].removeprefix("http://").rstrip("/")
                    found[words[-1]] = split[target] if target.startswith("$") else {target: 1.0}
    return found


def test_shares_and_replicas_are_the_plans() -> None:
    plan = fleet_plan()
    text = configuration(plan)
    assert shares(text) == {
        "/conversation/": {"chat-h100-tp4": 0.7, "chat-h100-fp8": pytest.approx(0.3)},
        "/autocomplete/": {"code-h100-tp1": 1.0},
        "/agents/": {"code-h100-tp1": 1.0},
    }
    upstreams = {
        words[1]: [line[1] for line, _ in inner if line[0] == "server"]
        for words, inner in inside(http_of(text), "upstream")
    }
    assert {name: len(servers) for name, servers in upstreams.items()} == {
        group.id: group.replicas for group in plan.groups
    }
    servers = [server for listed in upstreams.values() for server in listed]
    assert len(set(servers)) == len(servers) == 8


def test_one_class_needs_no_path() -> None:
    found = shares(configuration(chat_plan()))
    assert found["/"] == found["/conversation/"] == {"chat-h100-tp4": 1.0}


def test_one_machine_needs_no_names() -> None:
    plan = chat_plan(replicas=2, placement=packed(2, 4))
    assert "server 127.0.0.1:8100;" in configuration(plan)


def test_requests_go_to_the_replica_with_the_fewest_open_ones() -> None:
    for words, upstream in inside(http_of(configuration(fleet_plan())), "upstream"):
        directives = [line[0] for line, _ in upstream]
        assert directives[:2] == ["zone", "least_conn"]  # the zone shares the counts between worker processes
        assert directives[-1] == "keepalive", words


def test_round_robin_is_nginxs_default() -> None:
    text = configuration(changed(fleet_plan(), router="round_robin"))
    assert "least_conn" not in text


@pytest.mark.parametrize("router", ["least_kv", "power_of_two", "prefix_aware", "sticky"])
def test_a_router_that_nginx_is_not_is_refused_by_name(router: str) -> None:
    with pytest.raises(InputError, match=f"cannot route by {router}") as refused:
        configuration(changed(fleet_plan(), router=router))
    assert refused.value.field == "router"


def test_tokens_are_passed_on_as_they_come() -> None:
    ((_, server),) = inside(http_of(configuration(fleet_plan())), "server")
    settings_ = {line[0]: line[1] for line, inner in server if inner is None and len(line) == 2}
    assert settings_["proxy_buffering"] == "off"
    assert int(settings_["proxy_read_timeout"].rstrip("s")) >= 600


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=5))
def test_any_split_comes_back_within_a_hundredth_of_a_percent(weights: list[int]) -> None:
    total = sum(weights)
    groups = tuple(
        chat_group(id=f"group {index}", replicas=1, placement=packed(1, 4, first_device=4 * index))
        for index in range(len(weights))
    )
    routes = tuple(
        Route(request_class="all", group=group.id, share=weight / total)
        for group, weight in zip(groups, weights, strict=True)
    )
    plan = plan_of(groups, routes)
    try:
        found = shares(configuration(plan))["/all/"]
    except InputError:
        assert min(weights) / total < 2e-4 * len(weights)
        return
    for index, weight in enumerate(weights):
        assert found[f"group-{index}"] == pytest.approx(weight / total, abs=1e-4 * len(weights))


@given(st.text(max_size=80))
def test_safe_names_are_dns_labels(text: str) -> None:
    name = safe_name(text)
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name)
    assert len(name) <= LONGEST


@given(st.lists(st.text(alphabet="aA-_ é", max_size=60), max_size=8))
def test_different_texts_keep_different_names(texts: list[str]) -> None:
    names = safe_names(texts)
    assert set(names) == set(texts)
    assert len(set(names.values())) == len(set(texts))
    assert all(len(name) <= LONGEST and re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name) for name in names.values())


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_nginx_itself_accepts_it(tmp_path: Path) -> None:
    path = tmp_path / "nginx.conf"
    path.write_text(re.sub(r"server h100-\d+:", "server 127.0.0.1:", configuration(fleet_plan())))
    subprocess.run(["nginx", "-e", "stderr", "-t", "-p", str(tmp_path), "-c", str(path)], check=True)
