"""Prefill and decode replicas of vLLM: what each is told, and the router that hands requests over between them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import yaml
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from plan_fixture import changed
from split_plans import split_plan

from codegen.exports import export_plan
from codegen.exports.args import vllm_arguments
from codegen.exports.handover import Side, application, prefill_body
from codegen.exports.shared import drain_s

HELD = {"do_remote_prefill": True, "do_remote_decode": False, "remote_block_ids": [1, 2], "remote_host": "h"}


def test_sides_are_told_their_role() -> None:
    plan = split_plan()
    stated = [json.loads(str(dict(vllm_arguments(plan, group).options)["kv-transfer-config"])) for group in plan.groups]
    assert [item["kv_role"] for item in stated] == ["kv_producer", "kv_consumer"]
    assert {(item["kv_connector"], item["kv_load_failure_policy"]) for item in stated} == {("NixlConnector", "fail")}
    unified = changed(plan.groups[0], role="unified", hands_over_to=None)
    assert "kv-transfer-config" not in dict(vllm_arguments(plan, unified).options)


def test_a_decode_replica_may_take_as_long_to_stop_as_the_classes_that_it_serves() -> None:
    plan = split_plan()
    slow = plan.predictions.classes[0].model_copy(update={"e2e_s": {"p90": 200.0}})
    plan = plan.model_copy(update={"predictions": plan.predictions.model_copy(update={"classes": (slow,)})})
    assert [drain_s(plan, group) for group in plan.groups] == [420, 420]


def test_every_replica_has_a_side_channel_of_its_own_on_its_machine() -> None:
    files = export_plan(split_plan(), "vllm").files
    prefill, decode = files["chat-prefill/serve.sh"], files["chat-decode/serve.sh"]
    for words in (
        "CUDA_VISIBLE_DEVICES=0,1,2,3 VLLM_NIXL_SIDE_CHANNEL_HOST=h100-0 VLLM_NIXL_SIDE_CHANNEL_PORT=5600 vllm serve",
        "CUDA_VISIBLE_DEVICES=4,5,6,7 VLLM_NIXL_SIDE_CHANNEL_HOST=h100-0 VLLM_NIXL_SIDE_CHANNEL_PORT=5728 vllm serve",
    ):
        assert words in prefill
    assert "VLLM_NIXL_SIDE_CHANNEL_HOST=h100-1 VLLM_NIXL_SIDE_CHANNEL_PORT=5600" in decode
    assert files["chat-prefill/router.sh"].splitlines()[-1] == (
        "exec python3 ../handover.py --port 8050 --prefill http://h100-0:8100 http://h100-0:8101 "
        "--decode http://h100-1:8102"
    )
    assert "server 127.0.0.1:8050;" in files["nginx.conf"]
    assert "8102" not in files["nginx.conf"]  # nothing arrives at a decode replica but through the router between
    in_turn = export_plan(changed(split_plan(), router="round_robin"), "vllm").files["chat-prefill/router.sh"]
    assert in_turn.rstrip().endswith("--in-turn")


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_cluster_gets_both_sides_and_the_router_between_them(engine: str) -> None:
    files = export_plan(split_plan(engine), "kubernetes").files
    manifests = {
        (item["kind"], item["metadata"]["name"]): item
        for name, text in files.items()
        if name.endswith(".yaml") and name != "kustomization.yaml"
        for item in yaml.safe_load_all(text)
    }
    router = manifests["Deployment", "chat-prefill-handover"]["spec"]["template"]["spec"]["containers"][0]
    words = router["command"]
    decode = "http://chat-decode-0.chat-decode.$(POD_NAMESPACE).svc.$(CLUSTER_DOMAIN):8000"
    prefill = [f"http://chat-prefill-{i}.chat-prefill.$(POD_NAMESPACE).svc.$(CLUSTER_DOMAIN):8000" for i in range(2)]
    assert set(prefill) < set(words)
    assert words[words.index("--decode") + 1] == decode
    assert {item["name"] for item in router["env"]} == {"POD_NAMESPACE", "CLUSTER_DOMAIN"}
    served = manifests["StatefulSet", "chat-prefill"]["spec"]["template"]["spec"]["containers"][0]
    if engine == "vllm":
        assert manifests["ConfigMap", "chat-prefill-handover"]["data"]["handover.py"].startswith('"""Hands requests')
        variables = [item["name"] for item in served["env"]]
        assert variables.index("POD_IP") < variables.index("VLLM_NIXL_SIDE_CHANNEL_HOST")
        stated = {item["name"]: item.get("value") for item in served["env"]}
        assert stated["VLLM_NIXL_SIDE_CHANNEL_HOST"] == "$(POD_IP)"
    else:
        assert ("ConfigMap", "chat-prefill-handover") not in manifests
        assert words[:3] == ["python3", "-m", "sglang_router.launch_router"]
        assert served["args"][-2:] == ["--disaggregation-bootstrap-port", "5600"]
    configuration = manifests["ConfigMap", "router"]["data"]["nginx.conf.template"]
    assert "chat-prefill-handover.${POD_NAMESPACE}.svc" in configuration
    assert "chat-decode" not in configuration
    assert ("Service", "chat-prefill-handover") in manifests


def test_the_first_leg_asks_for_one_token_and_keeps_the_cache() -> None:
    asked = {"model": "chat", "prompt": "x", "max_tokens": 50, "stream": True, "stream_options": {}, "min_tokens": 5}
    sent = prefill_body(asked)
    assert sent["kv_transfer_params"] == {"do_remote_decode": True, "do_remote_prefill": False}
    assert (sent["max_tokens"], sent["stream"], sent["prompt"]) == (1, False, "x")
    assert not {"stream_options", "min_tokens"} & set(sent)
    assert prefill_body({"max_completion_tokens": 9})["max_completion_tokens"] == 1
    assert asked["max_tokens"] == 50


def test_the_emptiest_replica_is_chosen_or_the_next_in_turn() -> None:
    emptiest = Side(["a", "b"], in_turn=False)
    with emptiest.replica() as first, emptiest.replica() as second:
        assert (first, second) == ("a", "b")
        with emptiest.replica() as third:
            assert third == "a"
    turns = Side(["a", "b"], in_turn=True)
    taken = []
    for _ in range(3):
        with turns.replica() as address:
            taken.append(address)
    assert taken == ["a", "b", "a"]


class Replicas:
    """Stand-ins for vLLM at the addresses http://prefill and http://decode; what each was asked."""

    def __init__(self, prefill_status: int = 200, held: dict[str, Any] | None = HELD) -> None:
        self.asked: list[tuple[str, str, dict[str, Any], str]] = []
        self.app = FastAPI()
        self.release = asyncio.Event()
        self.release.set()

        @self.app.get("/v1/models")
        async def models() -> dict[str, Any]:
            return {"data": [{"id": "chat"}]}

        @self.app.post("/{path:path}")
        async def serve(path: str, request: Request) -> Response:
            body, host = await request.json(), request.url.hostname or ""
            self.asked.append((host, path, body, request.headers["X-Request-Id"]))
            if host.startswith("prefill") and prefill_status != 200:
                return Response(b'{"error": "full"}', prefill_status)
            if not body.get("stream"):
                answer = {"choices": [{"text": host}]} | ({"kv_transfer_params": held} if held else {})
                return Response(json.dumps(answer), media_type="application/json")
            return StreamingResponse(self._tokens(), media_type="text/event-stream")

    async def _tokens(self) -> AsyncIterator[bytes]:
        for index in range(3):
            yield f"data: {index}\n\n".encode()
            await self.release.wait()

    def router(self, decode: tuple[str, ...] = ("http://decode",)) -> tuple[httpx.AsyncClient, Side]:
        """A client of the router in front of these replicas, and the router's decode side."""
        inner = httpx.AsyncClient(transport=httpx.ASGITransport(self.app))
        side = Side(list(decode), in_turn=False)
        app = application(Side(["http://prefill"], in_turn=False), side, inner)
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router"), side


def test_a_request_is_prefilled_then_decoded_with_what_the_first_side_holds() -> None:
    async def talk() -> None:
        replicas = Replicas()
        client, _ = replicas.router()
        body = {"model": "chat", "prompt": "x", "max_tokens": 3, "stream": True}
        answer = await client.post("/v1/completions", json=body, headers={"X-Request-Id": "7"})
        assert answer.text == "data: 0\n\ndata: 1\n\ndata: 2\n\n"
        assert answer.headers["content-type"].startswith("text/event-stream")
        (first, second) = replicas.asked
        assert (first[0], first[1], first[3]) == ("prefill", "v1/completions", "7")
        assert first[2] == prefill_body(body)
        assert second == ("decode", "v1/completions", body | {"kv_transfer_params": HELD}, "7")

    asyncio.run(talk())


def test_one_token_needs_no_decode_replica() -> None:
    async def talk() -> None:
        replicas = Replicas()
        client, _ = replicas.router()
        answer = await client.post("/v1/chat/completions", json={"messages": [], "max_completion_tokens": 1})
        assert answer.json()["choices"] == [{"text": "prefill"}]
        ((host, _, body, _),) = replicas.asked
        assert host == "prefill"
        assert "kv_transfer_params" not in body

    asyncio.run(talk())


@pytest.mark.parametrize(
    ("replicas", "status", "says"),
    [
        (lambda: Replicas(prefill_status=503), 503, "full"),
        (lambda: Replicas(held=None), 502, "kept no KV cache"),
    ],
)
def test_a_prefill_side_that_fails_is_the_answer(replicas: Any, status: int, says: str) -> None:
    async def talk() -> None:
        made = replicas()
        client, side = made.router()
        answer = await client.post("/v1/completions", json={"prompt": "x", "max_tokens": 3})
        assert answer.status_code == status
        assert says in answer.text
        assert [host for host, *_ in made.asked] == ["prefill"]
        assert side._open == {"http://decode": 0}

    asyncio.run(talk())


def test_an_unreachable_replica_is_an_error_and_not_a_hanging_client() -> None:
    async def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route")

    async def talk() -> None:
        inner = httpx.AsyncClient(transport=httpx.MockTransport(refuse))
        prompts = Side(["http://prefill"], in_turn=False)
        app = application(prompts, Side(["http://decode"], in_turn=False), inner)
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router")
        answer = await client.post("/v1/completions", json={"prompt": "x", "max_tokens": 3})
        assert answer.status_code == 502
        assert "does not answer" in answer.text
        assert prompts._open == {"http://prefill": 0}
        assert (await client.get("/health")).status_code == 200

    asyncio.run(talk())


def test_replicas_are_free_again_after_their_last_byte() -> None:
    async def talk() -> None:
        replicas = Replicas()
        client, side = replicas.router(("http://decode-a", "http://decode-b"))
        body = {"prompt": "x", "max_tokens": 3, "stream": True}
        replicas.release.clear()  # the decode replicas stop after their first token
        answers = [asyncio.create_task(client.post("/v1/completions", json=body)) for _ in range(4)]
        while len(replicas.asked) < 8:
            await asyncio.sleep(0.001)
        hosts = sorted(host for host, *_ in replicas.asked)
        assert hosts == ["decode-a"] * 2 + ["decode-b"] * 2 + ["prefill"] * 4
        assert side._open == {"http://decode-a": 2, "http://decode-b": 2}
        replicas.release.set()
        await asyncio.gather(*answers)
        assert side._open == {"http://decode-a": 0, "http://decode-b": 0}
        assert (await client.get("/v1/models")).json() == {"data": [{"id": "chat"}]}

    asyncio.run(talk())
