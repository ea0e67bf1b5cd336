"""Tokens to text, piece by piece: characters whole, stop strings never shown."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from maxlm.data.tokenizers import Tokenizer
from maxlm.errors import ConfigError


class TextStream:
    """The text of one answer as its tokens arrive.

    Bytes of a character that is not whole yet, and text that may be the beginning of a stop string, are
    held back until the next token decides.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        """Prepare; `stop` as `check_stop` accepts it."""
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False  # a stop string was met: what follows is not looked at

    def add(self, token: int) -> str:
        """The text that a token completes."""
        return self._release(self._decoder.decode(self._tokenizer.decode_bytes([token])))

    def end(self) -> str:
        """What was held back, when no token follows."""
        if self.stopped:
            return ""
        text = self._release(self._decoder.decode(b"", final=True))
        text, self._held = text + self._held, ""
        return text

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        safe = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        text, self._held = text[:safe], text[safe:]
        return text


def check_stop(stop: Sequence[str]) -> None:
    """Refuse stop strings that no text can hold. Raises ConfigError."""
    for number, text in enumerate(stop, start=1):
        if not text:
            raise ConfigError(
                f"stop string {number} is empty, which every text holds: leave it out"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"stop string {number}, {text!r}, is no valid UTF-8 at character {error.start}: "
                "no text can hold it"
            ) from error


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of `text` begin `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
