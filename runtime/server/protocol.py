"""Requests of the OpenAI protocol: read, checked, and what is not honoured refused by name.

Beyond the protocol, as other engines have it: `top_k`, `min_tokens`, `ignore_eos`, `stop_token_ids`,
`return_tokens_as_token_ids` (tokens in log-probabilities are written `token_id:N`, unambiguous for any vocabulary).
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from runtime.request import SamplingParams
from specs.errors import InputError, nearest_names

MAX_PROMPTS = 256
MAX_ENTRIES = 10_000  # of the other lists of a request, and parts of all messages together
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


# Members of an answer that clients send back with it; they say nothing where they are empty.
EMPTY_IN_MESSAGES = frozenset({"tool_calls", "annotations"})
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # JSON's spelling of what may be half of a surrogate pair


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 16.0 is a whole number, true is none."""
    if isinstance(value, bool):
        raise ValueError("true or false is not a number")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError("the number does not fit 64 bits")
    return value


def _number(value: Any) -> Any:
    if type(value) is not int:
        return value
    try:
        return float(value)
    except OverflowError:
        raise ValueError("the number is too large") from None


def _prompts(value: Any) -> list[str | list[int]]:
    """One or several prompts, each text or token ids. By hand: lists of ids are long, and this runs at C's speed."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise ValueError("neither text nor a list")
    if not value:
        raise ValueError("is empty")
    if isinstance(value[0], int | float):
        return [_ids(value)]
    if len(value) > MAX_PROMPTS:
        raise ValueError(f"holds {len(value)} prompts, at most {MAX_PROMPTS} are taken")
    if all(isinstance(one, str) for one in value):
        return value
    if not all(isinstance(one, list) for one in value):
        raise ValueError("its members are of several kinds")
    return [_ids(one) for one in value]


def _ids(value: list[Any]) -> list[int]:
    if not set(map(type, value)) <= {int, float}:
        raise ValueError("a token id is not a number")
    if set(map(type, value)) == {int} and min(value) >= -(2**63) and max(value) < 2**63:
        return value
    ids = [_whole(one) for one in value]
    if not all(isinstance(one, int) for one in ids):
        raise ValueError("a token id is not a whole number")
    return ids


def _checked_length(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    contents = (one.get("content") for one in value if isinstance(one, dict))
    entries = len(value) + sum(len(content) for content in contents if isinstance(content, list))
    if entries > MAX_ENTRIES:
        raise ValueError(f"holds {entries} entries, at most {MAX_ENTRIES} are taken")
    return value


Whole = Annotated[int, BeforeValidator(_whole), Field(strict=True)]
Number = Annotated[float, BeforeValidator(_number), Field(strict=True)]
# Each wrong entry costs an error object, so lists are bounded before their entries are looked at.
AT_MOST = BeforeValidator(_checked_length)
Stops = str | Annotated[list[str], AT_MOST]


class _Nested(BaseModel):
    """An object inside a request; null means that a member is not given."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: given
            for name, given in value.items()
            if given is not None and not (given == [] and name in EMPTY_IN_MESSAGES)
        }


class StreamOptions(_Nested):
    include_usage: bool = False
    include_obfuscation: bool = False  # nothing is padded: no effect on the answer


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
    stop_token_ids: Annotated[list[Whole], AT_MOST] | None = None
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
    prompt: Annotated[list[str | list[int]], PlainValidator(_prompts)]
    max_tokens: Whole = 16
    logprobs: Whole | None = None


class TextPart(_Nested):
    type: Literal["text"]
    text: str


class Message(_Nested):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """Role and text, as chat templates read them."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(_Common):
    messages: Annotated[list[Message], Field(min_length=1), AT_MOST]
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
    value = _json(body)
    if not isinstance(value, dict):
        raise InputError(f"the body is {type(value).__name__}", expected="a JSON object")
    known = set(kind.model_fields)
    kept: dict[str, Any] = {}
    for name, given in value.items():
        if name in known:
            if given is not None or name in ("model", "prompt", "messages"):
                kept[name] = given  # null means: not given
        elif name in NEUTRAL:
            if given is not None and not any(_same(given, one) for one in NEUTRAL[name]):
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
        raise _first_error(error) from None


def _json(body: bytes) -> Any:
    """The value of a body in UTF-8, every string of it text."""
    try:
        text = body.decode("utf-8-sig")
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise InputError(f"the body is not UTF-8 (at byte {error.start})", expected="JSON in UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is not JSON that can be read ({error})") from None
    if _HALF_PAIR.search(text):
        _refuse_half_pairs(value)
    return value


def _refuse_half_pairs(value: Any) -> None:
    """Half of a surrogate pair is no character: it could neither be encoded nor sent back. Names the field."""
    places: list[tuple[str, Any]] = [("", value)]
    while places:
        place, one = places.pop()
        if isinstance(one, str) and not _is_text(one):
            raise InputError("holds half of a surrogate pair, which is no character", field=place or None)
        if isinstance(one, dict):
            for name, given in one.items():
                spelt = name if _is_text(name) else name.encode("ascii", "backslashreplace").decode()
                inner = f"{place}.{_short(spelt)}" if place else _short(spelt)
                places.append((inner, given))
                if spelt is not name:
                    raise InputError("the name holds half of a surrogate pair, which is no character", field=inner)
        elif isinstance(one, list):
            places += [(f"{place}.{index}", given) for index, given in enumerate(one)]


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _first_error(error: ValidationError) -> InputError:
    """The first of pydantic's findings, its place in the words of the request.

    Of a union there is one for each of its types: the one that came deepest, or was ours, is of the type meant.
    """
    found = error.errors(include_url=False, include_input=False)
    first = max(found, key=lambda one: (len(one["loc"]), one["type"] == "value_error"))
    *outer, last = first["loc"] or ("",)
    extra = first["type"] == "extra_forbidden"
    parts = [*outer] if extra else [*outer, last]
    named = [str(part) for part in parts if isinstance(part, int) or part in _NAMES]
    place = ".".join([*named, _short(str(last))] if extra else named)
    if extra:
        return InputError("is not honoured by this server", field=place, expected="it left out, or null")
    wrong = "is missing" if first["type"] == "missing" else f"is wrong ({first['msg'].removeprefix('Value error, ')})"
    return InputError(wrong, field=place or None, expected=_EXPECTED.get(place.split(".")[0]))


def _same(given: Any, neutral: Any) -> bool:
    """Equal as JSON: 1 is 1.0, but true is not 1."""
    return isinstance(given, bool) == isinstance(neutral, bool) and bool(given == neutral)


_NAMES = {
    *CompletionRequest.model_fields,
    *ChatRequest.model_fields,
    "role",
    "content",
    "type",
    "text",
    "include_usage",
    "include_obfuscation",
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
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except RecursionError:
        text = f"a {type(value).__name__} nested too deeply"
    return text if len(text) <= 60 else text[:57] + "..."
