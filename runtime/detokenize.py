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
        self.stopped = False  # a stop string came; text from it on is dropped

    def push(self, token: int) -> str:
        """Text that may be shown after `token`."""
        self._tokens += 1
        self._held += self._decoder.push(token)
        return self._release(final=False)

    def flush(self) -> str:
        """The rest, at the end of the answer."""
        if self.stopped:
            return ""
        self._held += self._decoder.flush()
        return self._release(final=True)

    def _release(self, final: bool) -> str:
        if self._stop and self._tokens > self._min_tokens:
            places = [place for place in (self._held.find(text) for text in self._stop) if place >= 0]
            if places:
                self.stopped = True
                shown, self._held = self._held[: min(places)], ""
                return shown
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
