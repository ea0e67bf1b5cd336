"""What a source is made of, how it is read, and what every reader of a format can do.

A source file is cut into stretches (byte ranges of the uncompressed content, rows, row groups or
examples, by format) that can be read apart from one another, each giving the same documents
whoever reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from maxlm.data.document import Document, Problems

DEFAULT_MAX_DOCUMENT_BYTES = 256 << 20


@dataclass(frozen=True)
class SourceFile:
    """One file of a source (for a TFDS builder, one split of it).

    Attributes:
        path: where it is.
        name: what it is called in messages and manifests: relative to what the user named.
        format: `text`, `jsonl`, `parquet`, `arrow` or `tfds`.
        bytes: its size as it is stored.
        modified: when it was last changed, in nanoseconds; 0 where that cannot be told.
    """

    path: str
    name: str
    format: str
    bytes: int
    modified: int = 0

    @property
    def compressed(self) -> bool:
        """Whether it is a gz or zst file."""
        return self.path.endswith((".gz", ".zst"))


@dataclass(frozen=True)
class ReadOptions:
    """How sources are read.

    Attributes:
        text_field: where JSONL, Parquet, Arrow and TFDS records have their text.
        document_separator: what stands between the documents of a plain text file; None: the whole
            file is one document.
        max_document_bytes: the largest document, in UTF-8 bytes.
    """

    text_field: str = "text"
    document_separator: str | None = None
    max_document_bytes: int = DEFAULT_MAX_DOCUMENT_BYTES


class Stretch(NamedTuple):
    """A part of a file, `[start, stop)`; `stop` None: to the end."""

    start: int
    stop: int | None


class Reader(Protocol):
    """Reads one file.

    Attributes:
        ended: after `read` is exhausted: whether nothing follows the stretch.
    """

    ended: bool

    def stretches(self, target_bytes: int) -> list[Stretch] | None:
        """Stretches of about so many bytes of text.

        None: their number shows only while reading; stretch k is then
        `[k * target_bytes, (k + 1) * target_bytes)`, and the last one sets `ended`.
        """
        ...

    def read(self, stretch: Stretch, problems: Problems) -> Iterator[Document]:
        """Documents that begin in the stretch, in order."""
        ...
