"""A server seen from outside: its address, what it calls itself, and how it may be asked."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from runtime.replay.prompts import Form, Prompts, WordScale
from runtime.replay.stream import Answer, ask
from specs.errors import InputError, nearest_names
from specs.measurements import Endpoint
from specs.replay import ReplayRequest

Api = Literal["auto", "completions", "chat"]
PROBE_TOKENS = 8
PROBE_WORDS = (32, 96)  # their difference tells the tokens of a word


@dataclass(frozen=True)
class Target:
    """Where requests go. `api_key` is sent, never shown or stored.

    `model` None: the only one that the server has, or `usual` where it has several.
    """

    url: str
    model: str | None = None
    usual: str | None = None
    api: Api = "auto"
    api_key: str | None = field(default=None, repr=False)

    @property
    def base(self) -> str:
        """`http://host:port[/path]` without the protocol's `/v1`. `InputError` where it is no such address."""
        parts = urlsplit(self.url if "//" in self.url else f"http://{self.url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise InputError(f"{self.url!r} is no address of a server", field="--url", expected="http://HOST:PORT")
        if parts.username or parts.password:
            raise InputError(
                "holds a name or a password",
                field="--url",
                expected="the key in an environment variable, --api-key-env",
            )
        if parts.query or parts.fragment:
            raise InputError(f"{self.url!r} holds a query", field="--url", expected="http://HOST:PORT")
        path = parts.path.rstrip("/").removesuffix("/v1")
        return f"{parts.scheme}://{parts.netloc}{path}"

    @property
    def loopback(self) -> bool:
        host = urlsplit(self.base).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def client(self) -> httpx.AsyncClient:
        """Any number of connections: a request never waits for one. No proxy to this machine itself."""
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return httpx.AsyncClient(
            base_url=self.base,
            headers=headers,
            timeout=httpx.Timeout(None, connect=10.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=60.0),
            trust_env=not self.loopback,
            verify=self.base.startswith("https"),
        )

    def redact(self, text: str) -> str:
        """A server's words without the key, should it repeat it."""
        return text.replace(self.api_key, "***") if self.api_key else text


@dataclass(frozen=True)
class Known:
    """What was found out before the run."""

    endpoint: Endpoint
    form: Form
    prompts: Prompts
    notes: tuple[str, ...]


async def meet(client: httpx.AsyncClient, target: Target, vocabulary: int, seed: int, wait_s: float) -> Known:
    """Who is there, which model, and the fullest way to ask that it takes. One short answer or a few are asked for.

    `InputError` where nothing answers, the model is not there, or the server refuses every way to ask. A server that
    fails in another way (500, silence) is asked in the fullest form, and a note says so.
    """
    base = target.base
    listed, server = await _models(client, base)
    model = _chosen(target, [str(entry["id"]) for entry in listed])
    own = next((entry for entry in listed if entry["id"] == model), {})
    length = own.get("max_model_len")
    form, scale, notes = await _negotiated(client, target, model, vocabulary, seed, wait_s)
    endpoint = Endpoint(
        url=base,
        model=model,
        models=tuple(str(entry["id"]) for entry in listed),
        max_model_len=length if isinstance(length, int) and length > 0 else None,
        version=await _version(client),
        server=server,
        api="chat" if form.chat else "completions",
        prompts="token ids" if form.token_ids else "text",
        ignores_eos=form.ignore_eos,
        counts_tokens=form.usage,
    )
    return Known(endpoint, form, Prompts(seed, vocabulary, form.token_ids, scale), tuple(notes))


async def _models(client: httpx.AsyncClient, base: str) -> tuple[list[dict[str, Any]], str | None]:
    """Entries of /v1/models (none where it is not there) and the name of the server's software."""
    try:
        response = await client.get("/v1/models", timeout=10.0)
    except httpx.HTTPError as error:
        raise InputError(
            f"nothing answers there ({error or type(error).__name__})", file=base, expected="a running server"
        ) from None
    if response.status_code in (401, 403):
        raise InputError(
            f"answers {response.status_code}: it wants a key", file=base, expected="--api-key-env NAME_OF_A_VARIABLE"
        )
    try:
        data = response.json()["data"] if response.status_code == 200 else []
        entries = [entry for entry in data if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
    except (ValueError, KeyError, TypeError):
        entries = []
    return entries, response.headers.get("server")


def _chosen(target: Target, names: list[str]) -> str:
    wanted = target.model
    if wanted is None:
        if len(names) == 1:
            return names[0]
        if target.usual is not None and (not names or target.usual in names):
            return target.usual
        known = f"serves {', '.join(names)}" if names else "does not say what it serves"
        raise InputError(f"the server {known}", field="--model", expected="the name of one model")
    if names and wanted not in names:
        raise InputError(
            f"the server has no model {wanted!r}",
            field="--model",
            expected=" or ".join(names[:5]),
            nearest=nearest_names(wanted, names),
        )
    return wanted


async def _version(client: httpx.AsyncClient) -> str | None:
    """What /version says, as vLLM and others have it."""
    try:
        response = await client.get("/version", timeout=5.0)
        found = response.json().get("version") if response.status_code == 200 else None
    except (httpx.HTTPError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def _forms(model: str, api: Api) -> Iterator[Form]:
    """Ways to ask, the best first."""
    for chat in {"auto": (False, True), "completions": (False,), "chat": (True,)}[api]:
        for token_ids in (False,) if chat else (True, False):
            for ignore_eos in (True, False):
                for usage in (True, False):
                    yield Form(model, chat, token_ids, ignore_eos, usage)


async def _negotiated(
    client: httpx.AsyncClient, target: Target, model: str, vocabulary: int, seed: int, wait_s: float
) -> tuple[Form, WordScale, list[str]]:
    refusal = None
    for form in _forms(model, target.api):
        answer = await _probe(client, target, form, vocabulary, seed, PROBE_WORDS[0], wait_s)
        if answer.status == "failed" and answer.code is not None and 400 <= answer.code < 500:
            if answer.code in (401, 403):
                raise InputError(answer.error or "", file=target.base, expected="--api-key-env NAME_OF_A_VARIABLE")
            refusal = refusal or answer.error
            continue
        notes = _notes(form)
        if answer.status != "ok":
            notes.append(f"the first request failed ({answer.error}); how the server may be asked is not known")
            return form, WordScale(), notes
        if answer.output_tokens is None and form.usage:
            form = replace(form, usage=False)
            notes = _notes(form)
        if form.ignore_eos and answer.tokens < PROBE_TOKENS:
            form = replace(form, ignore_eos=False)
            notes = _notes(form)
        scale = None if form.token_ids else await _scale(client, target, form, answer, seed, wait_s)
        if scale is None and not form.token_ids:
            notes.append("the server does not count tokens: a word of a prompt is taken for a token")
        return form, scale or WordScale(), notes
    raise InputError(f"the server refuses every request: {refusal}", file=target.base)


def _notes(form: Form) -> list[str]:
    """What the server does not do, and what that means for the numbers."""
    notes = []
    if not form.token_ids:
        notes.append("prompts are text of about the declared length: the server takes no token ids here")
    if not form.ignore_eos:
        notes.append("the server does not take ignore_eos: answers may be shorter than declared")
    if not form.usage:
        notes.append("the server does not count tokens: one piece of the stream is taken for one token")
    return notes


async def _probe(
    client: httpx.AsyncClient, target: Target, form: Form, vocabulary: int, seed: int, words: int, wait_s: float
) -> Answer:
    prompts = Prompts(seed + 1, vocabulary, form.token_ids)  # of another seed: the run's prompts are new to the server
    prompt = prompts.of(words, ReplayRequest("probe", words, PROBE_TOKENS), 0)
    answer = Answer()
    await ask(client, form.path, form.body(prompt, PROBE_TOKENS), answer, wait_s, target.redact)
    return answer


async def _scale(
    client: httpx.AsyncClient, target: Target, form: Form, first: Answer, seed: int, wait_s: float
) -> WordScale | None:
    """Tokens by words, from two prompts of different length; None where the server does not count."""
    more = await _probe(client, target, form, 0, seed, PROBE_WORDS[1], wait_s)
    if first.prompt_tokens is None or more.prompt_tokens is None or more.prompt_tokens <= first.prompt_tokens:
        return None
    each = (more.prompt_tokens - first.prompt_tokens) / (PROBE_WORDS[1] - PROBE_WORDS[0])
    return WordScale(max(0.0, first.prompt_tokens - each * PROBE_WORDS[0]), each)
