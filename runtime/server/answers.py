"""Answers of the OpenAI protocol as plain JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime.request import FinishReason, Output, SampledToken
from runtime.tokenizer import Tokenizer


@dataclass
class Gathered:
    """One choice of an answer that is not streamed: all its outputs joined."""

    text: str = ""
    tokens: list[SampledToken] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)  # where each token begins: `Output.text_offset`
    finish_reason: FinishReason | None = None
    message: str | None = None

    def add(self, output: Output) -> None:
        self.text += output.text
        if output.sampled is not None:
            self.tokens.append(output.sampled)
            self.offsets.append(output.text_offset)
        if output.finish_reason is not None:
            self.finish_reason, self.message = output.finish_reason, output.message


@dataclass(frozen=True)
class Names:
    """How tokens are written in log-probabilities."""

    tokenizer: Tokenizer
    as_ids: bool

    def name(self, token: int) -> str:
        """The token's text; a token that is no whole character is written `bytes:\\xNN...`."""
        if self.as_ids:
            return f"token_id:{token}"
        raw = self.tokenizer.token_bytes(token)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def completion(self, tokens: Sequence[SampledToken], offsets: Sequence[int]) -> dict[str, Any]:
        """The `logprobs` object of /v1/completions; `offsets`: where in the answer's text each token begins."""
        return {
            "tokens": [self.name(token.token) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self.name(top.token): top.logprob for top in token.top} for token in tokens],
            "text_offset": list(offsets),
        }

    def chat(self, tokens: Sequence[SampledToken]) -> dict[str, Any]:
        """The `logprobs` object of /v1/chat/completions."""

        def entry(token: int, logprob: float | None) -> dict[str, Any]:
            return {"token": self.name(token), "logprob": logprob, "bytes": list(self.tokenizer.token_bytes(token))}

        return {
            "content": [
                {
                    **entry(token.token, token.logprob),
                    "top_logprobs": [entry(top.token, top.logprob) for top in token.top],
                }
                for token in tokens
            ]
        }


def usage(prompt_tokens: int, generated_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": generated_tokens,
        "total_tokens": prompt_tokens + generated_tokens,
    }


def error(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in the protocol's format."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
