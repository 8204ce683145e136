"""A decoder of the `tokenizers` library, run one token at a time.

The library decodes a whole list of tokens through a chain of steps. Here every step is a small machine that gives out
what no later token can change, so that the pieces of a stream, joined, are exactly the library's text of all the ids.
Work per token does not depend on how many came before.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from specs.errors import InputError

_BYTE_TOKEN = re.compile(r"<0x([0-9a-fA-F]{2})>")
_PER_TOKEN = ("Replace", "Metaspace", "WordPiece", "Strip")


class Step(Protocol):
    """One step of the chain: pieces in, pieces out."""

    def push(self, piece: str) -> Iterable[str]: ...

    def flush(self) -> Iterable[str]:
        """What was held back, at the end."""

    def peek(self, text: str) -> str:
        """What `flush` would give now, whole characters only, if `text` came first; nothing changes."""


class Chain:
    """The steps of one tokenizer; `start` gives a fresh machine for one answer."""

    def __init__(self, backend: Any) -> None:
        """`backend`: a `tokenizers.Tokenizer`. `InputError` for a decoder that has no incremental form here."""
        self._steps: list[Callable[[], Step]] = []
        self._to_bytes: list[Callable[[str], str | bytes]] = []
        description = _description(backend)
        fused = False
        for step in description.get("decoders", [description]) if description else []:
            fused = self._add(step, fused)
        if not description:  # the library joins the tokens with blanks
            self._steps.append(_Joined)
            self._to_bytes.append(lambda token: " " + token)

    def start(self) -> Incremental:
        return Incremental([make() for make in self._steps])

    def token_bytes(self, token: str) -> bytes:
        """The bytes that a token stands for, with the leading blank that it loses as the first of a text."""
        piece: str | bytes = token
        for convert in self._to_bytes:
            if isinstance(piece, bytes):
                break
            piece = convert(piece)
        return piece if isinstance(piece, bytes) else piece.encode()

    def _add(self, step: dict[str, Any], fused: bool) -> bool:
        """Append one step; whether all that follows sees one text instead of tokens."""
        kind = step["type"]
        if kind == "Fuse":
            return True
        if kind == "Strip" and fused and step["stop"] == 0:
            self._steps.append(lambda: _LeadingStrip(step["content"], step["start"]))
        elif fused or (kind == "Strip" and step["stop"]):
            raise InputError(f"its decoder holds {kind} in a place that cannot be streamed")
        elif kind in _PER_TOKEN:
            decoder = _library_decoder(step)
            self._steps.append(lambda: _PerToken(decoder))
            self._to_bytes.append(lambda token: _later(decoder, token))
        elif kind == "BPEDecoder":
            decoder = _library_decoder(step)
            self._steps.append(lambda: _SuffixedWords(decoder))
            self._to_bytes.append(lambda token: str(decoder.decode([token, ""])))
        elif kind == "ByteFallback":
            self._steps.append(_ByteFallback)
            self._to_bytes.append(lambda token: _byte(token) or token)
        elif kind == "ByteLevel":
            self._steps.append(_ByteLevel)
            self._to_bytes.append(_byte_level_bytes)
            return True
        else:
            raise InputError(f"its decoder is {kind}, which is not supported")
        return False


class Incremental:
    """Tokens in, text out: the steps of a `Chain` for one answer."""

    def __init__(self, steps: list[Step]) -> None:
        self._steps = steps

    def push(self, token: str) -> str:
        pieces: list[str] = [token]
        for step in self._steps:
            pieces = [out for piece in pieces for out in step.push(piece)]
        return "".join(pieces)

    def flush(self) -> str:
        pieces: list[str] = []
        for step in self._steps:
            pieces = [out for piece in pieces for out in step.push(piece)]
            pieces += step.flush()
        return "".join(pieces)

    @property
    def pending(self) -> str:
        """Text held back that `flush` would give now, whole characters only."""
        text = ""
        for step in self._steps:
            text = step.peek(text)
        return text


class _PerToken:
    """A step of the library that looks at each token alone, and at whether it is the first."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self._first = True

    def push(self, piece: str) -> Iterable[str]:
        text = str(self._decoder.decode([piece])) if self._first else _later(self._decoder, piece)
        self._first = False
        return (text,)

    def flush(self) -> Iterable[str]:
        return ()

    def peek(self, text: str) -> str:
        if not text:
            return ""
        return str(self._decoder.decode([text])) if self._first else _later(self._decoder, text)


class _SuffixedWords:
    """Tokens that end a word carry a suffix, which becomes a blank, but nothing at the end of the text."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self._last: str | None = None

    def push(self, piece: str) -> Iterable[str]:
        before, self._last = self._last, piece
        return () if before is None else (str(self._decoder.decode([before, ""])),)

    def flush(self) -> Iterable[str]:
        last, self._last = self._last, None
        return () if last is None else (str(self._decoder.decode([last])),)

    def peek(self, text: str) -> str:
        return text + ("" if self._last is None else str(self._decoder.decode([self._last])))


class _ByteFallback:
    """Neighbouring `<0xNN>` tokens are one text if they are UTF-8 together; if not, each of them is U+FFFD.

    So a run of them is held back until it ends: the last byte can still spoil the first. A spoilt run is held no more.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._bytes = 0  # held back
        self._whole = ""  # the characters that they are
        self._spoilt = False
        self._utf8 = codecs.getincrementaldecoder("utf-8")()

    def push(self, piece: str) -> Iterable[str]:
        byte = _byte(piece)
        if byte is None:
            return (*self.flush(), piece)
        self._bytes += 1
        if not self._spoilt:
            try:
                self._whole += self._utf8.decode(byte)
                return ()
            except UnicodeDecodeError:
                self._spoilt, self._whole = True, ""
        held, self._bytes = self._bytes, 0
        return ("\ufffd",) * held

    def flush(self) -> Iterable[str]:
        partial, _ = self._utf8.getstate()
        whole, held = self._whole, self._bytes
        spoilt = self._spoilt or bool(partial)
        self._reset()
        if spoilt:
            return ("\ufffd",) * held
        return (whole,) if held else ()

    def peek(self, text: str) -> str:
        return text + self._whole


class _ByteLevel:
    """Every character of a token is one byte; all tokens together are UTF-8."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, piece: str) -> Iterable[str]:
        return (self._utf8.decode(_byte_level_bytes(piece)),)

    def flush(self) -> Iterable[str]:
        return (self._utf8.decode(b"", final=True),)

    def peek(self, text: str) -> str:
        return text


class _LeadingStrip:
    """Takes up to `most` characters off the beginning of the text."""

    def __init__(self, character: str, most: int) -> None:
        self._character = character
        self._left = most  # that may still be taken off

    def push(self, piece: str) -> Iterable[str]:
        text = self.peek(piece)
        self._left = 0 if text else self._left - len(piece)
        return (text,)

    def flush(self) -> Iterable[str]:
        return ()

    def peek(self, text: str) -> str:
        cut = 0
        while cut < min(self._left, len(text)) and text[cut] == self._character:
            cut += 1
        return text[cut:]


class _Joined:
    """No decoder: tokens with blanks between them."""

    def __init__(self) -> None:
        self._first = True

    def push(self, piece: str) -> Iterable[str]:
        blank, self._first = "" if self._first else " ", False
        return (blank + piece,)

    def flush(self) -> Iterable[str]:
        return ()

    def peek(self, text: str) -> str:
        return text


def _description(backend: Any) -> dict[str, Any] | None:
    """The decoder as the library writes it to JSON, without the vocabulary, which can be megabytes."""
    from tokenizers import Tokenizer, models

    empty = Tokenizer(models.BPE())
    if backend.decoder is not None:
        empty.decoder = backend.decoder
    found: dict[str, Any] | None = json.loads(empty.to_str())["decoder"]
    return found


def _library_decoder(step: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer, models

    whole = json.loads(Tokenizer(models.BPE()).to_str())
    return Tokenizer.from_str(json.dumps({**whole, "decoder": step})).decoder


def _later(decoder: Any, piece: str) -> str:
    """What a step that looks at each token alone makes of one that is not the first."""
    return str(decoder.decode(["", piece]))


def _byte(token: str) -> bytes | None:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes.fromhex(match[1]) if match else None


def _byte_level_alphabet() -> dict[str, int]:
    """Byte-level BPE writes a byte as the Latin-1 character where that is visible, the others from U+0100 on in order.

    Radford et al., "Language Models are Unsupervised Multitask Learners" (GPT-2), its published encoder.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}


_ALPHABET = _byte_level_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    """A token with a character outside the alphabet (an added one) stands for itself."""
    try:
        return bytes([_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode()
