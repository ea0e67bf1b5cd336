"""Text files and JSON lines: documents that lie one after another in a stream of bytes.

In goes a file, plain, gz or zst; out come its documents by stretches of the uncompressed content. A
document belongs to the stretch in which its first byte lies. A compressed file is read through
from its start, once by every process that reads parts of it, in order: uncompressing is tens of
times faster than tokenizing. JSON lines that are not compressed are entered anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from maxlm.data.document import Document, Problems, Reason
from maxlm.data.sources.byte_stream import (
    DamagedStreamError,
    line_number,
    read_blocks,
    read_whole,
    split_blocks,
)
from maxlm.data.sources.source_file import ReadOptions, SourceFile, Stretch
from maxlm.errors import did_you_mean

_Piece = tuple[int, bytes | None, int]
# `json.loads` would guess the encoding first, a quarter of its time on short lines.
_parse = json.JSONDecoder().decode


class _StreamReader:
    """Stretches of a stream of pieces; keeps its place, so that going on costs nothing."""

    delimiter: bytes
    limit: int
    enters_anywhere = False

    def __init__(self, file: SourceFile, options: ReadOptions):
        self.file, self.options = file, options
        self.ended = False
        self._pieces: Iterator[_Piece] = iter(())
        self._next: _Piece | None = None
        self._position: int | None = None  # pieces that begin before it are gone; None: not open

    def stretches(self, target_bytes: int) -> list[Stretch] | None:
        """Known beforehand only where a file can be entered anywhere."""
        if not self.enters_anywhere:
            return None
        starts = range(0, max(self.file.bytes, 1), target_bytes)
        return [Stretch(start, start + target_bytes) for start in starts]

    def read(self, stretch: Stretch, problems: Problems) -> Iterator[Document]:
        """Documents whose first byte lies in the stretch."""
        self.ended = False
        if stretch.start == 0 and self.file.bytes == 0:
            self.ended = True
            problems.report(Reason.EMPTY_FILE, f"{self.file.path}: the file is empty")
            return
        if self._position is None or self._position > stretch.start or self.enters_anywhere:
            self._open(stretch.start)
        try:
            while self._advance():
                assert self._next is not None
                offset, piece, size = self._next
                if stretch.stop is not None and offset >= stretch.stop:
                    self._position = stretch.stop
                    return
                self._next = None
                if offset >= stretch.start:
                    yield from self._documents(offset, piece, size, problems)
        except DamagedStreamError as error:
            # The stretch in which the broken piece begins reports it, and no other.
            if stretch.stop is not None and error.offset >= stretch.stop:
                self._position = None
                return
            if error.offset >= stretch.start:
                problems.report(
                    Reason.CUT_SHORT,
                    f"{self.file.path}: {error} after {error.offset:,} bytes of content; "
                    "copy it again from where it came",
                )
        self.ended = True
        self._position = None

    def _documents(
        self, offset: int, piece: bytes | None, size: int, problems: Problems
    ) -> Iterator[Document]:
        raise NotImplementedError

    def _open(self, start: int) -> None:
        path = self.file.path
        first = max(0, start - 1) if self.enters_anywhere else 0
        # One byte early: when that byte is the delimiter, a piece begins at `start`.
        self._pieces = split_blocks(
            read_blocks(path, first), self.delimiter, limit=self.limit, offset=first
        )
        self._next, self._position = None, start

    def _advance(self) -> bool:
        if self._next is None:
            self._next = next(self._pieces, None)
        return self._next is not None

    def where(self, offset: int) -> str:
        """`path:line (byte offset)`; only called to report, since it counts the lines."""
        return f"{self.file.path}:{line_number(self.file.path, offset)} (byte {offset})"


class JsonLinesReader(_StreamReader):
    """One JSON object per line, its text in a field."""

    delimiter = b"\n"

    def __init__(self, file: SourceFile, options: ReadOptions):
        super().__init__(file, options)
        self.enters_anywhere = not file.compressed
        # Escapes and other fields make a line longer than its text.
        self.limit = 4 * options.max_document_bytes + (1 << 20)

    def _documents(
        self, offset: int, piece: bytes | None, size: int, problems: Problems
    ) -> Iterator[Document]:
        if piece is None:
            problems.report(Reason.TOO_LARGE, too_large(self.where(offset), size, self.options))
            return
        if not piece.strip():
            return
        try:
            record = _parse(_decode(piece, offset))
        except UnicodeDecodeError as error:
            problems.report(
                Reason.NOT_UTF8,
                f"{self.where(offset)}: not UTF-8 text: {error.reason} at byte {error.start} "
                "of the line",
            )
            return
        except (json.JSONDecodeError, RecursionError) as error:
            what = str(error)
            if isinstance(error, json.JSONDecodeError):
                what = f"{error.msg} (column {error.colno})"
            problems.report(
                Reason.NOT_JSON,
                f"{self.where(offset)}: not JSON: {what}; the line begins {_begin(piece)}",
            )
            return
        field = self.options.text_field
        if not isinstance(record, dict) or field not in record:
            problems.report(
                Reason.NO_TEXT,
                f"{self.where(offset)}: no field '{field}'{_fields(record, field)}; "
                "`--text-field NAME` names another",
            )
            return
        text = record[field]
        if not isinstance(text, str):
            problems.report(
                Reason.NOT_A_STRING,
                f"{self.where(offset)}: the field '{field}' is a "
                f"{type(text).__name__}, not a string",
            )
            return
        name = self.file.name
        own = record.get("id")
        yield Document(text, name, offset, str(own) if own else f"{name}:{offset}")


class SeparatedTextReader(_StreamReader):
    """A text file with a separator between its documents."""

    def __init__(self, file: SourceFile, options: ReadOptions):
        super().__init__(file, options)
        assert options.document_separator
        self.delimiter = options.document_separator.encode("utf-8")
        self.limit = options.max_document_bytes

    def _documents(
        self, offset: int, piece: bytes | None, size: int, problems: Problems
    ) -> Iterator[Document]:
        if piece is None:
            problems.report(Reason.TOO_LARGE, too_large(self.where(offset), size, self.options))
            return
        try:
            text = _decode(piece, offset)
        except UnicodeDecodeError as error:
            where = self.where(offset + error.start)
            problems.report(Reason.NOT_UTF8, not_utf8(where, error))
            return
        yield Document(text, self.file.name, offset, f"{self.file.name}:{offset}")


class WholeTextReader:
    """A text file that is one document."""

    def __init__(self, file: SourceFile, options: ReadOptions):
        self.file, self.options = file, options
        self.ended = True

    def stretches(self, target_bytes: int) -> list[Stretch] | None:
        """One, whatever its size."""
        return [Stretch(0, None)]

    def read(self, stretch: Stretch, problems: Problems) -> Iterator[Document]:
        """The document."""
        path = self.file.path
        try:
            content, size = read_whole(path, self.options.max_document_bytes)
        except DamagedStreamError as error:
            problems.report(Reason.CUT_SHORT, f"{path}: {error}; copy it again from where it came")
            return
        if content is None:
            problems.report(Reason.TOO_LARGE, too_large(path, size, self.options))
        elif not content:
            problems.report(Reason.EMPTY_FILE, f"{path}: the file is empty")
        else:
            try:
                text = _decode(content, 0)
            except UnicodeDecodeError as error:
                line = content.count(b"\n", 0, error.start) + 1
                where = f"{path}:{line} (byte {error.start})"
                problems.report(Reason.NOT_UTF8, not_utf8(where, error))
                return
            yield Document(text, self.file.name, 0, self.file.name)


def too_large(where: str, size: int, options: ReadOptions) -> str:
    """What to say of a document above the limit."""
    return (
        f"{where}: a document of {size:,} bytes is above the limit of "
        f"{options.max_document_bytes:,}; cut it with --document-separator, or raise "
        "--max-document-bytes (each worker holds a document whole, several times over)"
    )


def not_utf8(where: str, error: UnicodeDecodeError) -> str:
    """What to say of bytes that are no text."""
    found = error.object[error.start]
    return f"{where}: not UTF-8 text: {error.reason} (0x{found:02X}); convert the file, or drop it"


def _decode(content: bytes, offset: int) -> str:
    """Text, without the byte order mark that some editors put before a file."""
    text = content.decode("utf-8")
    return text.removeprefix("\ufeff") if offset == 0 else text


def _begin(piece: bytes) -> str:
    shown = piece[:40].decode("utf-8", "replace")
    return repr(shown) + ("…" if len(piece) > 40 else "")


def _fields(record: Any, field: str) -> str:
    if not isinstance(record, dict):
        return f": the line is a JSON {type(record).__name__}, not an object"
    names = ", ".join(sorted(record)[:20]) or "no fields"
    return f"{did_you_mean(field, record)}; the line has {names}"
