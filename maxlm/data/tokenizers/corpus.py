"""Text to train a tokenizer on or measure it with: files in, records of text out.

Plain text (also gz), JSONL with a `text` field (also gz) and zip archives of text files are read in
a stream, so that no file need fit into memory: a plain text comes in blocks.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from maxlm import storage
from maxlm.errors import DataError

_BLOCK_BYTES = 1 << 20
_SUFFIXES = (".txt", ".txt.gz", ".md", ".jsonl", ".jsonl.gz", ".zip")


@dataclass(frozen=True)
class TextRecord:
    """A text and the file it is of; of a zip archive, its member."""

    file: str
    text: str
    group: str | None = None


def find_files(patterns: Iterable[str]) -> list[str]:
    """Files that paths, globs and folders name, sorted within each. Raises DataError."""
    files: list[str] = []
    for pattern in patterns:
        if storage.is_remote(pattern):
            files.append(pattern)
        elif os.path.isdir(pattern):
            found = [name for name in storage.list_names(pattern) if name.endswith(_SUFFIXES)]
            if not found:
                raise DataError(
                    f"{pattern}: no text in this folder: it has no file *" + ", *".join(_SUFFIXES)
                )
            files += [storage.join(pattern, name) for name in found]
        elif os.path.exists(pattern):
            files.append(pattern)
        elif found := sorted(glob.glob(pattern, recursive=True)):
            files += [name for name in found if os.path.isfile(name)]
        else:
            raise DataError(f"{pattern}: no such file, and nothing matches it as a pattern")
    return files


def read_texts(
    files: Iterable[str], field: str = "text", group_field: str | None = None
) -> Iterator[TextRecord]:
    """Texts of the files, in order.

    Args:
        files: paths, local or remote; `*.jsonl` and `*.jsonl.gz` are JSON lines, the rest text.
        field: where a JSON line has its text.
        group_field: where a JSON line says what it belongs to (its language, say).

    Raises DataError that names file and line or byte: not UTF-8, not JSON, no such field, damaged
    compression.
    """
    for path in files:
        if path.endswith(".zip"):
            yield from _read_zip(path)
            continue
        with storage.open_file(path) as file:
            stream: Any = gzip.GzipFile(fileobj=file) if path.endswith(".gz") else file
            try:
                if path.removesuffix(".gz").endswith(".jsonl"):
                    yield from _read_jsonl(path, stream, field, group_field)
                else:
                    yield from _read_plain(path, stream)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise DataError(f"{path}: damaged or cut short: {error}") from error


def _read_plain(path: str, stream: IO[bytes]) -> Iterator[TextRecord]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, line = 0, 1
    while True:
        block = stream.read(_BLOCK_BYTES)
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            line += error.object[: error.start].count(b"\n")
            raise DataError(
                f"{path}:{line}: not UTF-8 text: {error.reason} at byte "
                f"{offset - pending + error.start} (0x{error.object[error.start]:02X}); "
                "convert the file, or leave it out"
            ) from error
        if text:
            yield TextRecord(path, text)
        if not block:
            return
        offset += len(block)
        line += text.count("\n")


def _read_jsonl(
    path: str, stream: IO[bytes], field: str, group_field: str | None
) -> Iterator[TextRecord]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}:{number}: not UTF-8 text: {error.reason} at byte {error.start} of the line"
            ) from error
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON: {error.msg} (column {error.colno})") from (
                error
            )
        text = _text_of(record, field)
        if text is None:
            raise DataError(
                f"{path}:{number}: no text in the field '{field}'; the line has {_shape(record)}"
            )
        group = str(record.get(group_field)) if group_field else None
        yield TextRecord(path, text, group)


def _read_zip(path: str) -> Iterator[TextRecord]:
    try:
        with storage.open_file(path) as file, zipfile.ZipFile(file) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith((".txt", ".md")):
                    with archive.open(name) as member:
                        yield from _read_plain(f"{path}:{name}", member)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged zip archive: {error}") from error


def _text_of(record: Any, field: str) -> str | None:
    text = record.get(field) if isinstance(record, dict) else None
    return text if isinstance(text, str) else None


def _shape(record: Any) -> str:
    if isinstance(record, dict):
        return "the fields " + (", ".join(sorted(record)) or "(none)")
    return f"a JSON {type(record).__name__}"
