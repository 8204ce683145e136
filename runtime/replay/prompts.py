"""Prompts of a stated number of tokens: token ids where the server takes them, else words.

Every prompt is drawn from (seed, its number), so no two begin alike and a prefix cache finds nothing, unless units are
declared: a unit's tokens are drawn from (seed, its id), the same in every prompt that holds it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from specs.replay import ReplayRequest

# Ordinary words, nearly all of them one token with the vocabularies in use.
_TEXT = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work government number night point home water room mother area money
story fact month lot right study book eye job word business issue side kind head house service friend father power hour
game line end member law car city community name president team minute idea body information back parent face others
level office door health person art war history party result change morning reason research girl guy moment air teacher
force education foot boy age policy music market sense nation plan college interest death experience effect use class
"""
WORDS = tuple(_TEXT.split())


@dataclass(frozen=True)
class WordScale:
    """Tokens that a server makes of n words: `fixed_tokens` + `tokens_per_word` n (a chat template is in the first)."""

    fixed_tokens: float = 0.0
    tokens_per_word: float = 1.0

    def words(self, tokens: int) -> int:
        return max(1, round((tokens - self.fixed_tokens) / self.tokens_per_word))


@dataclass(frozen=True)
class Prompts:
    """Makes the prompt of any request. Ids stay off both ends of the vocabulary, where special tokens are."""

    seed: int
    vocabulary: int  # of the model
    token_ids: bool
    scale: WordScale = WordScale()

    def of(self, number: int, request: ReplayRequest, unit_tokens: int) -> list[int] | str:
        """The prompt of request `number` of a run."""
        shared = request.units[: request.prompt_tokens // unit_tokens] if unit_tokens else ()
        if not self.token_ids:
            return self._text(number, request.prompt_tokens, shared, unit_tokens)
        ids = [token for unit in shared for token in self._draw((1, unit), unit_tokens)]
        return ids + self._draw((0, number), request.prompt_tokens - len(ids))

    def _text(self, number: int, tokens: int, shared: Sequence[int], unit_tokens: int) -> str:
        wanted = self.scale.words(tokens)
        each = max(1, round(unit_tokens / self.scale.tokens_per_word)) if shared else 0
        words = [word for unit in shared for word in self._words((1, unit), each)][:wanted]
        return " ".join(words + self._words((0, number), wanted - len(words)))

    def _draw(self, key: tuple[int, int], count: int) -> list[int]:
        low, high = self.vocabulary // 16, max(self.vocabulary // 16 + 1, self.vocabulary * 7 // 8)
        drawn: list[int] = self._random(key).integers(low, high, count).tolist()
        return drawn

    def _words(self, key: tuple[int, int], count: int) -> list[str]:
        return [WORDS[index] for index in self._random(key).integers(0, len(WORDS), count).tolist()]

    def _random(self, key: tuple[int, int]) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self.seed, *key]))


@dataclass(frozen=True)
class Form:
    """How this server is asked: which endpoint, which members beyond the protocol's own it takes."""

    model: str
    chat: bool = False
    token_ids: bool = True
    ignore_eos: bool = True
    usage: bool = True

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    def body(self, prompt: list[int] | str, tokens: int) -> bytes:
        """The request for a streamed answer of `tokens` tokens."""
        value: dict[str, Any] = {"model": self.model, "max_tokens": tokens, "temperature": 0, "stream": True}
        if self.chat:
            value["messages"] = [{"role": "user", "content": prompt}]
        else:
            value["prompt"] = prompt
        if self.ignore_eos:
            value["ignore_eos"] = True
        if self.usage:
            value["stream_options"] = {"include_usage": True}
        return json.dumps(value, separators=(",", ":")).encode()
