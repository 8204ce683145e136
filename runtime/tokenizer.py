"""Text to token ids and back: a transformers tokenizer from a directory, or the byte-level one of made models.

Decoding is incremental: `decoder()` takes one id at a time and gives out only whole characters, so that a stream never
carries half of a UTF-8 sequence. What is still incomplete at the end becomes U+FFFD.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from specs.errors import InputError

BYTE_TOKENIZER_FILE = "byte_tokenizer.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
SPECIAL_TOKENS = ("<bos>", "<eos>", "<system>", "<user>", "<assistant>", "<end>")  # ids from 256 on
BYTE_VOCABULARY = 256 + len(SPECIAL_TOKENS)
DEFAULT_CHAT_TEMPLATE = (
    "{{ '<bos>' }}{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + '<end>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "spiece.model")


class Decoder(Protocol):
    """Ids in, whole characters out."""

    def push(self, token: int) -> str: ...

    def flush(self) -> str: ...


class Tokenizer(Protocol):
    """What the server needs of a tokenizer."""

    eos_token_ids: frozenset[int]

    @property
    def has_chat_template(self) -> bool: ...

    def encode(self, text: str) -> list[int]: ...

    def chat(self, messages: Sequence[dict[str, str]]) -> list[int]: ...

    def decoder(self) -> Decoder: ...

    def token_bytes(self, token: int) -> bytes: ...


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of a model directory; `InputError` where there is none that can be read."""
    directory = Path(directory)
    if (directory / BYTE_TOKENIZER_FILE).exists():
        return ByteTokenizer(_template(directory) or DEFAULT_CHAT_TEMPLATE)
    return HuggingFaceTokenizer(directory)


class ByteTokenizer:
    """Every byte of UTF-8 is a token; a few special tokens follow. Text may spell a special token only in chats."""

    def __init__(self, chat_template: str = DEFAULT_CHAT_TEMPLATE) -> None:
        self.specials = {name: 256 + index for index, name in enumerate(SPECIAL_TOKENS)}
        self.eos_token_ids = frozenset({self.specials["<eos>"], self.specials["<end>"]})
        self._template = chat_template

    @property
    def has_chat_template(self) -> bool:
        return True

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", errors="replace"))

    def chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Special tokens come from the template only; in a message they are cut apart: nobody speaks as another."""
        guard = "\x00"
        safe = [{**message, "content": _guarded(message["content"], guard)} for message in messages]
        text = _render(self._template, safe)
        ids: list[int] = []
        while text:
            name = next((name for name in SPECIAL_TOKENS if text.startswith(name)), None)
            if name is not None:
                ids.append(self.specials[name])
                text = text[len(name) :]
                continue
            if text[0] != guard:
                ids += self.encode(text[0])
            text = text[1:]
        return ids

    def decoder(self) -> Decoder:
        return _ByteDecoder()

    def token_bytes(self, token: int) -> bytes:
        if token < 256:
            return bytes([token])
        return SPECIAL_TOKENS[token - 256].encode() if token < BYTE_VOCABULARY else b""


class _ByteDecoder:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(bytes([token])) if token < 256 else ""

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class HuggingFaceTokenizer:
    """A transformers tokenizer from local files; nothing is fetched, no code of the directory is run."""

    def __init__(self, directory: Path) -> None:
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise InputError(
                "needs transformers", file=str(directory), expected="pip install 'capstan-llm[runtime]'"
            ) from None
        if not any((directory / name).is_file() for name in TOKENIZER_FILES):
            # the library would make an empty tokenizer of the config alone
            raise InputError("holds no tokenizer", file=str(directory), expected=f"one of {', '.join(TOKENIZER_FILES)}")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # the library raises whatever its parsers raise
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"its tokenizer cannot be read ({first})", file=str(directory)) from error
        self.eos_token_ids = _eos_ids(directory, self._tokenizer.eos_token_id)
        self._special = frozenset(self._tokenizer.all_special_ids)
        template = _template(directory)
        if template is not None and not self._tokenizer.chat_template:
            self._tokenizer.chat_template = template

    @property
    def has_chat_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text))

    def chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        if not self.has_chat_template:
            raise InputError("the model has no chat template", field="messages", expected="use /v1/completions")
        try:
            text = self._tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        except Exception as error:  # templates refuse orders of roles in their own words
            raise InputError(f"the chat template refuses them ({error})", field="messages") from error
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decoder(self) -> Decoder:
        return _HuggingFaceDecoder(self._tokenizer, self._special)

    def token_bytes(self, token: int) -> bytes:
        return str(self._tokenizer.decode([token])).encode()


class _HuggingFaceDecoder:
    """Decodes a short tail twice, with and without the new ids, and gives the difference once it is whole.

    A tail instead of the single id because tokenizers join, strip or add blanks depending on the neighbour.
    """

    def __init__(self, tokenizer: Any, special: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._ids: list[int] = []
        self._shown = 0  # ids whose text is out
        self._context = 0  # where the tail begins

    def push(self, token: int) -> str:
        if token in self._special:
            return ""
        self._ids.append(token)
        return self._new_text(final=False)

    def flush(self) -> str:
        return self._new_text(final=True)

    def _new_text(self, final: bool) -> str:
        if self._shown == len(self._ids):
            return ""
        before = self._decode(self._ids[self._context : self._shown])
        now = self._decode(self._ids[self._context :])
        if not final and (now.endswith("\ufffd") or len(now) <= len(before)):
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _guarded(text: str, guard: str) -> str:
    for name in SPECIAL_TOKENS:
        text = text.replace(name, name[0] + guard + name[1:])
    return text


def _render(template: str, messages: Sequence[dict[str, str]]) -> str:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        compiled = ImmutableSandboxedEnvironment().from_string(template)
        return compiled.render(messages=list(messages), add_generation_prompt=True)
    except jinja2.TemplateError as error:
        raise InputError(f"the chat template refuses them ({error})", field="messages") from None


def _template(directory: Path) -> str | None:
    path = directory / CHAT_TEMPLATE_FILE
    return path.read_text(encoding="utf-8") if path.exists() else None


def _eos_ids(directory: Path, own: int | None) -> frozenset[int]:
    """End-of-sequence ids of the tokenizer, `generation_config.json` and `config.json` together."""
    found = set() if own is None else {int(own)}
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        if not path.exists():
            continue
        try:
            value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"is not JSON ({error})", file=str(path)) from None
        found |= {int(one) for one in (value if isinstance(value, list) else [value]) if one is not None}
    return frozenset(found)
