"""Requests of the OpenAI protocol: read, checked, and what is not honoured refused by name.

Beyond the protocol, as other engines have it: `top_k`, `min_tokens`, `ignore_eos`, `stop_token_ids`,
`return_tokens_as_token_ids` (tokens in log-probabilities are written `token_id:N`, unambiguous for any vocabulary).
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from runtime.request import SamplingParams
from specs.errors import InputError, nearest_names

MAX_PROMPTS = 256
# Sent by common clients, without effect on the answer here.
HARMLESS = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
# Fields of the protocol that this version does not honour, and the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "reasoning_effort": ("none",),
    "modalities": (["text"],),
    "skip_special_tokens": (True,),
}


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 16.0 is a whole number, true is none."""
    if isinstance(value, bool):
        raise ValueError("is true or false, not a number")
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole), Field(strict=True)]
Number = Annotated[
    float, BeforeValidator(lambda value: float(value) if type(value) is int else value), Field(strict=True)
]
Stops = str | list[str]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class _Common(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: Whole | None = None
    seed: Whole | None = None
    stop: Stops | None = None
    stop_token_ids: list[Whole] | None = None
    min_tokens: Whole | None = None
    ignore_eos: bool = False
    return_tokens_as_token_ids: bool = False

    def params(self, max_tokens: int, logprobs: int | None) -> SamplingParams:
        """Sampling parameters; `InputError` names the field that is out of range."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=self.min_tokens or 0,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=max(0, self.top_k or 0),  # -1 and 0 both mean the whole vocabulary
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=stop,
            stop_token_ids=frozenset(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
        )

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(_Common):
    prompt: str | list[str] | list[Whole] | list[list[Whole]]
    max_tokens: Whole = 16
    logprobs: Whole | None = None

    def prompts(self) -> list[str | list[int]]:
        """One or several prompts, each text or token ids."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if not prompt:
            raise InputError("is empty", field="prompt", expected="text, token ids, or a list of either")
        if isinstance(prompt[0], int):
            return [[int(token) for token in prompt]]
        if len(prompt) > MAX_PROMPTS:
            raise InputError(f"holds {len(prompt)} prompts", field="prompt", expected=f"at most {MAX_PROMPTS}")
        return list(prompt)


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """Role and text, as chat templates read them."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(_Common):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Whole | None = None
    max_completion_tokens: Whole | None = None
    logprobs: bool = False
    top_logprobs: Whole | None = None

    def wanted_logprobs(self) -> int | None:
        if self.top_logprobs is not None and not self.logprobs:
            raise InputError("is given without logprobs", field="top_logprobs", expected="logprobs: true beside it")
        return (self.top_logprobs or 0) if self.logprobs else None


R = TypeVar("R", bound=_Common)


def parse_request(body: bytes, kind: type[R]) -> R:
    """A checked request from the bytes of a body. `InputError`: malformed JSON, wrong types, what is not honoured."""
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"the body is {type(value).__name__}", expected="a JSON object")
    known = set(kind.model_fields)
    kept: dict[str, Any] = {}
    for name, given in value.items():
        if name in known:
            if given is not None or name in ("model", "prompt", "messages"):
                kept[name] = given  # null means: not given
        elif name in NEUTRAL:
            if given is not None and given not in NEUTRAL[name]:
                neutral = " or ".join(json.dumps(one) for one in NEUTRAL[name])
                raise InputError(f"{_short(given)} is not honoured by this server", field=name, expected=neutral)
        elif name not in HARMLESS:
            names = sorted(known | set(NEUTRAL))
            raise InputError(
                "is not a field of this request", field=_short(name), nearest=nearest_names(name[:80], names, 1)
            )
    try:
        return kind.model_validate(kept)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in _NAMES)
        wrong = "is missing" if first["type"] == "missing" else f"is wrong ({first['msg']})"
        raise InputError(wrong, field=place or None, expected=_EXPECTED.get(place.split(".")[0])) from None


_NAMES = {
    *CompletionRequest.model_fields,
    *ChatRequest.model_fields,
    "role",
    "content",
    "type",
    "text",
    "include_usage",
}
_EXPECTED = {
    "model": "the served model's name",
    "prompt": "text, a list of texts, token ids, or a list of lists of token ids",
    "messages": "a list of {role, content}",
    "max_tokens": "a whole number from 1",
    "stop": "a string or a list of strings",
    "temperature": "a number from 0",
    "stream": "true or false",
}


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
