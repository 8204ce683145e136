"""Text to token ids and back: a transformers tokenizer from a directory, or the byte-level one of made models.

Decoding is incremental: `decoder()` takes one id at a time and gives out only whole characters that no later id can
change, so that a stream never carries half of a UTF-8 sequence. What is still incomplete at the end becomes U+FFFD.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, Protocol

from runtime.decoders import Chain, Incremental
from specs.errors import InputError

BYTE_TOKENIZER_FILE = "byte_tokenizer.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
SPECIAL_TOKENS = ("<bos>", "<eos>", "<system>", "<user>", "<assistant>", "<end>")  # ids from 256 on
BYTE_VOCABULARY = 256 + len(SPECIAL_TOKENS)
DEFAULT_CHAT_TEMPLATE = (
    "{{ '<bos>' }}{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + '<end>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
_SPECIAL = re.compile(f"({'|'.join(map(re.escape, SPECIAL_TOKENS))})")
_GUARD = "\udc00"  # half of a surrogate pair: no text of a request holds one (`_utf8`)
# Normalisation shortens a text: composition by up to 3 in UTF-8, compatibility forms by up to 4 ("\U0001d400" is "A").
MOST_SHORTENING = 4
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "spiece.model")


class Decoder(Protocol):
    """Ids in, whole characters out."""

    def push(self, token: int) -> str: ...

    def flush(self) -> str: ...

    @property
    def pending(self) -> str:
        """Whole characters held back, because a later id could still change them; `flush` would give them now."""


class Tokenizer(Protocol):
    """What the server needs of a tokenizer. Methods may be called from several threads."""

    eos_token_ids: frozenset[int]
    longest_token_bytes: int  # no token stands for more bytes of a text, so a longer text needs more tokens

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
        self.longest_token_bytes = max(map(len, SPECIAL_TOKENS))
        self._template = chat_template

    @property
    def has_chat_template(self) -> bool:
        return True

    def encode(self, text: str) -> list[int]:
        return list(_utf8(text))

    def chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Special tokens come from the template only; in a message they are cut apart: nobody speaks as another."""
        safe = [{**message, "content": _guarded(message["content"])} for message in messages]
        ids: list[int] = []
        for part in _SPECIAL.split(_render(self._template, safe)):
            if part in self.specials:
                ids.append(self.specials[part])
            else:
                ids += self.encode(part.replace(_GUARD, ""))
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

    @property
    def pending(self) -> str:
        return ""


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
        _eos_ids(directory, None)  # the library refuses some, and names neither the file nor the key
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # the library raises whatever its parsers raise
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"its tokenizer cannot be read ({first})", file=str(directory)) from error
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise InputError(
                f"its tokenizer is a {type(self._tokenizer).__name__}",
                file=str(directory),
                expected="one that the tokenizers library runs (tokenizer.json)",
            )
        try:
            self._chain = Chain(backend)
        except InputError as error:
            raise InputError(error.message, file=str(directory)) from None
        # Set once, because a change while another thread encodes is refused by the library.
        backend.no_truncation()
        backend.no_padding()
        self._backend: Any = backend
        self.eos_token_ids = _eos_ids(directory, self._tokenizer.eos_token_id)
        added = backend.get_added_tokens_decoder()
        self._special: dict[int, str] = {id: token.content for id, token in added.items() if token.special}
        longest = max((len(token.encode()) for token in backend.get_vocab()), default=1)
        self.longest_token_bytes = longest * (1 if backend.normalizer is None else MOST_SHORTENING)
        template = _template(directory)
        if template is not None and not self._tokenizer.chat_template:
            self._tokenizer.chat_template = template

    @property
    def has_chat_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    def encode(self, text: str) -> list[int]:
        return self._encode(text, add_special_tokens=True)

    def chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        if not self.has_chat_template:
            raise InputError("the model has no chat template", field="messages", expected="use /v1/completions")
        try:
            text = self._tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        except Exception as error:  # templates refuse orders of roles in their own words
            raise InputError(f"the chat template refuses them ({error})", field="messages") from error
        return self._encode(text, add_special_tokens=False)

    def decoder(self) -> Decoder:
        return _HuggingFaceDecoder(self._backend, self._special, self._chain.start())

    def token_bytes(self, token: int) -> bytes:
        if token in self._special:
            return self._special[token].encode()
        name = self._backend.id_to_token(token)
        return b"" if name is None else self._chain.token_bytes(name)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        _utf8(text, "prompt" if add_special_tokens else "messages")
        # A batch of one: unlike `encode`, it lets other threads run meanwhile.
        (encoded,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encoded.ids)


class _HuggingFaceDecoder:
    """Ids to the tokens' strings, special ones left out, through the decoder's chain."""

    def __init__(self, backend: Any, special: Container[int], chain: Incremental) -> None:
        self._backend = backend
        self._special = special
        self._chain = chain

    def push(self, token: int) -> str:
        name = None if token in self._special else self._backend.id_to_token(token)
        return "" if name is None else self._chain.push(name)

    def flush(self) -> str:
        return self._chain.flush()

    @property
    def pending(self) -> str:
        return self._chain.pending


def _utf8(text: str, field: str = "prompt") -> bytes:
    """`InputError` where the text holds half of a surrogate pair, which is no character."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"character {error.start} is half of a surrogate pair", field=field) from None


def _guarded(content: str) -> str:
    """Content with which no special token can be spelt, by itself or with what the template puts around it."""
    _utf8(content, "messages")
    return _GUARD + content.replace("<", "<" + _GUARD) + _GUARD


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
    try:
        return path.read_text(encoding="utf-8") if path.exists() else None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"is no readable text ({error})", file=str(path)) from None


def _eos_ids(directory: Path, own: int | None) -> frozenset[int]:
    """End-of-sequence ids of the tokenizer, `generation_config.json` and `config.json` together.

    `InputError` for what is no token id of the model: nothing would ever end there.
    """
    configs = {name: _json_object(directory / name) for name in ("generation_config.json", "config.json")}
    stated = {str(directory / name): config.get("eos_token_id") for name, config in configs.items()}
    vocabulary = configs["config.json"].get("vocab_size")
    most = vocabulary - 1 if isinstance(vocabulary, int) else None
    found: set[int] = set()
    for file, value in {str(directory): own, **stated}.items():
        for one in value if isinstance(value, list) else [] if value is None else [value]:
            if not isinstance(one, int) or isinstance(one, bool) or one < 0 or (most is not None and one > most):
                expected = f"a token id from 0 to {most}" if most is not None else "a token id"
                raise InputError(f"is {one!r}"[:80], file=file, field="eos_token_id", expected=expected)
            found.add(one)
    return frozenset(found)


def _json_object(path: Path) -> dict[str, Any]:
    """A file of the directory; {} where there is none."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"is not JSON ({error})", file=str(path)) from None
    if not isinstance(value, dict):
        raise InputError(f"holds {type(value).__name__}", file=str(path), expected="a mapping")
    return value
