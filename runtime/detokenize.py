"""The text of one answer: incremental decoding, and stop strings that are never shown."""

from __future__ import annotations

from runtime.tokenizer import Decoder


class OutputText:
    """Takes token ids one by one, gives out text that cannot become part of a stop string any more."""

    def __init__(self, decoder: Decoder, stop: tuple[str, ...], min_tokens: int = 0) -> None:
        self._decoder = decoder
        self._stop = stop
        self._min_tokens = min_tokens
        self._tokens = 0
        self._held = ""  # decoded, not out yet
        self._decoded = 0  # characters in all
        self.stopped = False  # a stop string came; text from it on is dropped

    @property
    def offset(self) -> int:
        """Where the next token begins: characters of the text of all tokens so far, shown or not."""
        return self._decoded + len(self._decoder.pending)

    def push(self, token: int) -> str:
        """Text that may be shown after `token`."""
        self._tokens += 1
        self._take(self._decoder.push(token))
        return self._release(final=False)

    def flush(self) -> str:
        """The rest, at the end of the answer."""
        if self.stopped:
            return ""
        self._take(self._decoder.flush())
        return self._release(final=True)

    def _take(self, text: str) -> None:
        self._held += text
        self._decoded += len(text)

    def _release(self, final: bool) -> str:
        if self._stop and self._tokens > self._min_tokens:
            # If the answer stops here, the decoder's pending text is final.
            known = self._held + self._decoder.pending
            places = [place for place in (known.find(text) for text in self._stop) if place >= 0]
            if places:
                self.stopped = True
                self._held = ""
                return known[: min(places)]
        keep = 0 if final else self._possible_start()
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def _possible_start(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max((len(text) for text in self._stop), default=0) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(text.startswith(tail) for text in self._stop):
                return length
        return 0
