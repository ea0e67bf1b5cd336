"""Files as streams of bytes: uncompressed on the way, split at a delimiter, with offsets.

In goes a file, plain, gz or zst; out come blocks, or the pieces between delimiters (lines,
documents), with their offsets in the uncompressed content. Nothing is ever held beyond one piece.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import IO, Any

from maxlm import storage
from maxlm.errors import DataError

BLOCK_BYTES = 1 << 20


class DamagedStreamError(Exception):
    """The rest of a file cannot be uncompressed.

    Attributes:
        offset: where the piece begins that is cut, in the uncompressed content.
    """

    def __init__(self, message: str, offset: int = 0):
        super().__init__(message)
        self.offset = offset


def read_blocks(path: str, start: int = 0) -> Iterator[bytes]:
    """Uncompressed blocks of a file.

    Args:
        path: a file, local or remote; `*.gz` and `*.zst` are uncompressed.
        start: for a file that is not compressed, where to begin.

    Raises:
        DamagedStreamError: it is no such compressed file, damaged or cut short.
        StorageError: it cannot be opened.
    """
    with storage.open_file(path) as file:
        if path.endswith(".gz"):
            yield from _uncompress(file, lambda: zlib.decompressobj(wbits=31), "gzip")
        elif path.endswith(".zst"):
            import zstandard

            yield from _uncompress(file, zstandard.ZstdDecompressor().decompressobj, "zstd")
        else:
            file.seek(start)
            while block := file.read(BLOCK_BYTES):
                yield block


def split_blocks(
    blocks: Iterator[bytes], delimiter: bytes, *, limit: int, offset: int = 0
) -> Iterator[tuple[int, bytes | None, int]]:
    """Pieces between delimiters.

    Args:
        blocks: the content.
        delimiter: what ends a piece; it is not part of it. The last piece needs none.
        limit: a piece of more bytes is passed over.
        offset: of the first block.

    Yields:
        (offset of the piece, the piece or None when it is above the limit, its bytes).

    Raises:
        DamagedStreamError: with the offset of the piece that is cut.
    """
    buffer = bytearray()
    dropped = 0  # bytes of the piece under way that are not kept, since it is above the limit
    searched = 0
    while True:
        try:
            block = next(blocks, b"")
        except DamagedStreamError as error:
            raise DamagedStreamError(str(error), offset) from error
        if not block:
            if buffer or dropped:
                size = dropped + len(buffer)
                yield offset, None if size > limit else bytes(buffer), size
            return
        buffer += block
        begin = 0
        while (end := buffer.find(delimiter, max(begin, searched))) >= 0:
            size = dropped + end - begin
            yield offset, None if size > limit else bytes(buffer[begin:end]), size
            offset += size + len(delimiter)
            begin, dropped, searched = end + len(delimiter), 0, 0
        del buffer[:begin]
        searched = max(0, len(buffer) - len(delimiter) + 1)
        if dropped + len(buffer) > limit:
            dropped += searched
            del buffer[:searched]
            searched = 0


def read_whole(path: str, limit: int) -> tuple[bytes | None, int]:
    """The uncompressed content of a file and its size; None when it is above the limit.

    Raises:
        DamagedStreamError, StorageError: as `read_blocks`.
    """
    size, kept = 0, []
    for block in read_blocks(path):
        size += len(block)
        if size <= limit:
            kept.append(block)
        else:
            kept.clear()
    return (None if size > limit else b"".join(kept)), size


def line_number(path: str, offset: int) -> int:
    """Line (from 1) of an offset of the uncompressed content. Reads the file from its start."""
    line, position = 1, 0
    try:
        for block in read_blocks(path):
            line += block.count(b"\n", 0, max(0, offset - position))
            position += len(block)
            if position >= offset:
                break
    except DamagedStreamError:
        pass
    return line


def _uncompress(file: IO[bytes], make: Any, kind: str) -> Iterator[bytes]:
    """Blocks of all members of a compressed file."""
    member: Any = None
    members = 0
    try:
        while compressed := file.read(BLOCK_BYTES):
            while compressed:
                if member is None:
                    if members and not compressed.strip(b"\0"):
                        break  # padding after the last member
                    member = make()
                    members += 1
                block = member.decompress(compressed)
                if block:
                    yield block
                compressed = member.unused_data if member.eof else b""
                if member.eof:
                    member = None
    except (zlib.error, EOFError, DataError) as error:
        raise DamagedStreamError(f"damaged {kind} file: {error}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("zstandard", "zstd"):
            raise
        raise DamagedStreamError(f"damaged {kind} file: {error}") from error
    if member is not None:
        raise DamagedStreamError(f"{kind} file is cut short")
