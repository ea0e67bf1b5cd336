"""Text to train a tokenizer on or measure it with: source files in, records of text out.

Sources are those of `maxlm.data.sources`, and zip archives of text files. Plain text comes in
blocks, so that a file of any size can be read: a tokenizer does not care where a document ends.
"""

from __future__ import annotations

import codecs
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO

from maxlm import storage
from maxlm.data.document import Problems, Reason
from maxlm.data.sources.byte_stream import DamagedStreamError, read_blocks, split_blocks
from maxlm.data.sources.reading import read_documents
from maxlm.data.sources.source_file import ReadOptions, SourceFile
from maxlm.errors import ConfigError

# A line of JSON is held whole anyway; there is nothing further to protect here.
_NO_LIMIT = 1 << 50
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class TextRecord:
    """A text and what it counts for: its file (of an archive, the member), or its group."""

    group: str
    text: str


def read_texts(
    files: Iterable[SourceFile],
    problems: Problems,
    text_field: str = "text",
    group_field: str | None = None,
) -> Iterator[TextRecord]:
    """Texts of the files, in order.

    Args:
        files: from `maxlm.data.sources.finding.find_files`.
        problems: raises or counts what cannot be read.
        text_field: where records have their text.
        group_field: where JSON lines say what they belong to (their language, say).

    Raises:
        DataError: that names file and place, unless `problems` skips.
        ConfigError: a group field is asked for, and a file is not JSON lines.
    """
    options = ReadOptions(text_field=text_field, max_document_bytes=_NO_LIMIT)
    for file in files:
        if group_field is not None:
            yield from _read_groups(file, problems, options, group_field)
        elif file.path.endswith(".zip"):
            yield from _read_archive(file, problems)
        elif file.format == "text":
            yield from _read_plain(file.name, file.path, read_blocks(file.path), problems)
        else:
            for document in read_documents([file], options, problems):
                yield TextRecord(file.name, document.text)


def _read_plain(
    group: str, path: str, blocks: Iterable[bytes], problems: Problems
) -> Iterator[TextRecord]:
    """A text in blocks; from the first place that is no UTF-8, the file is left out."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, line = 0, 1
    try:
        for block in _and_then_nothing(blocks):
            pending = len(decoder.getstate()[0])
            text = decoder.decode(block, final=not block)
            if text:
                yield TextRecord(group, text)
            offset += len(block)
            line += text.count("\n")
    except UnicodeDecodeError as error:
        line += error.object.count(b"\n", 0, error.start)
        where = f"{path}:{line} (byte {offset - pending + error.start})"
        problems.report(
            Reason.NOT_UTF8,
            f"{where}: not UTF-8 text: {error.reason} (0x{error.object[error.start]:02X}); "
            "convert the file, or leave it out",
        )
    except DamagedStreamError as error:
        problems.report(Reason.CUT_SHORT, f"{path}: {error}; copy it again from where it came")


def _and_then_nothing(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The blocks, cut small, then an empty one, at which a character cut short shows."""
    for block in blocks:
        for start in range(0, len(block), _BLOCK_BYTES):
            yield block[start : start + _BLOCK_BYTES]
    yield b""


def _read_archive(file: SourceFile, problems: Problems) -> Iterator[TextRecord]:
    path = file.path
    try:
        with storage.open_file(path) as opened, zipfile.ZipFile(opened) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith((".txt", ".md")):
                    with archive.open(name) as member:
                        yield from _read_plain(name, f"{path}:{name}", _blocks(member), problems)
    except (zipfile.BadZipFile, zlib.error) as error:
        problems.report(Reason.CUT_SHORT, f"{path}: damaged zip archive: {error}")


def _blocks(member: IO[bytes]) -> Iterator[bytes]:
    while block := member.read(_BLOCK_BYTES):
        yield block


def _read_groups(
    file: SourceFile, problems: Problems, options: ReadOptions, group_field: str
) -> Iterator[TextRecord]:
    """JSON lines with their group; what is wrong with a line, the plain reader reports."""
    if file.format != "jsonl":
        raise ConfigError(
            f"{file.path}: only JSON lines can be grouped by a field ('{group_field}'); "
            "other files are counted file by file"
        )
    lines = split_blocks(read_blocks(file.path), b"\n", limit=_NO_LIMIT)
    for document in read_documents([file], options, problems):
        # Both read the same lines in order; those that were skipped are passed over here.
        line = next(line for offset, line, _ in lines if offset == document.position)
        group = json.loads(line or b"{}").get(group_field, "(none)")
        yield TextRecord(str(group), document.text)
