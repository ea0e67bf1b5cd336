"""A document on its way from a source to a store, and what happens to input that is none.

Every source yields `Document`s. What it cannot read it reports to a `Problems`, which raises at once
(`fail`) or counts by reason (`skip`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from maxlm.errors import DataError


@dataclass(frozen=True, slots=True)
class Document:
    """A text and where it is from.

    Attributes:
        text: the whole text.
        source: name of its file.
        position: where in the file: a byte offset (of the uncompressed content), or a row number.
        id: the source's own name for it, or `source:position`.
    """

    text: str
    source: str
    position: int
    id: str


class OnError(StrEnum):
    """What to do about input that cannot be read."""

    FAIL = "fail"
    SKIP = "skip"


class Reason(StrEnum):
    """Why input was left out; the manifest counts by these."""

    EMPTY_FILE = "empty_file"
    EMPTY_TEXT = "empty_text"
    NOT_UTF8 = "not_utf8"
    CUT_SHORT = "damaged_or_cut_short"
    NOT_JSON = "not_json"
    NO_TEXT = "no_text_field"
    NOT_A_STRING = "text_not_string"
    TOO_LARGE = "document_too_large"
    NOT_READABLE = "file_not_readable"


@dataclass
class Problems:
    """Takes reports of bad input: raises them, or counts them."""

    on_error: OnError = OnError.FAIL
    skipped: Counter[str] = field(default_factory=Counter)

    def report(self, reason: Reason, message: str) -> None:
        """Raise DataError(message), or count the reason. An empty text is always only counted."""
        if self.on_error == OnError.FAIL and reason != Reason.EMPTY_TEXT:
            raise DataError(f"{message}\n(`--on-error skip` leaves such input out and counts it)")
        self.skipped[reason.value] += 1
