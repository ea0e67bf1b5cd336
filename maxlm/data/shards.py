"""Shards of a token store: flat arrays on disk, written once, verified where they are first read.

A shard is three files: `NAME.tokens` (little-endian uint16 or uint32), `NAME.documents` (int64 token
offsets of the documents' starts within the shard, and the end), `NAME.crc` (uint32 CRC32C of every
64 KiB of the tokens). In come token arrays, out come files and the record that the manifest keeps
of them; and back.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import google_crc32c
import numpy as np

from maxlm import storage
from maxlm.data.remote_blocks import RemoteBlocks
from maxlm.errors import DataError
from maxlm.storage import typed_errors

CRC_BLOCK_BYTES = 64 * 1024
# What one request to an object store reads: small beside its latency, and not too much more than
# the few kilobytes of a window.
REMOTE_BLOCK_BYTES = 4 * CRC_BLOCK_BYTES
# 256 MiB over all shards that are open.
REMOTE = RemoteBlocks(max_blocks=1024, threads=16)
FILES = ("tokens", "documents", "crc")


@dataclass(frozen=True)
class ShardRecord:
    """What the manifest keeps of a shard."""

    name: str
    tokens: int
    documents: int
    bytes: int  # UTF-8 bytes of the documents' text
    sha256: str  # of the three files' own SHA-256, in order

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


class ShardWriter:
    """Writes one shard of a local store under temporary names; `close` commits it.

    Raises StorageError when the disk is full; nothing that was committed before is touched.
    """

    def __init__(self, folder: str, name: str, dtype: np.dtype | str):
        """Begin the shard `folder/name`."""
        self._folder, self._name = Path(folder), name
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._largest = np.iinfo(self._dtype).max
        self._starts: list[int] = []
        self._tokens = self._bytes = 0
        self._crcs: list[int] = []
        self._pending = b""  # the end of the tokens that does not fill a CRC block yet
        self._hash = hashlib.sha256()
        with typed_errors(folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            # Closed by `close` and `abandon`.
            self._file: IO[bytes] = open(self._temporary("tokens"), "wb")  # noqa: SIM115

    @property
    def num_tokens(self) -> int:
        """Tokens added so far."""
        return self._tokens

    def add(self, tokens: np.ndarray, num_bytes: int) -> None:
        """Append one document: ids `[n]`, and the UTF-8 bytes of its text."""
        self.add_documents(tokens, [len(tokens)], num_bytes)

    def add_documents(self, tokens: np.ndarray, lengths: list[int], num_bytes: int) -> None:
        """Append documents, one after another in `tokens`; many at once cost less than one by one.

        Args:
            tokens: `[sum of lengths]` ids.
            lengths: tokens of each document.
            num_bytes: UTF-8 bytes of their texts.

        Raises:
            DataError: an id does not fit the dtype.
        """
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) <= self._largest:
            raise DataError(
                f"{self._folder / self._name}: token id {int(tokens.max())} does not fit "
                f"{self._dtype.name} (at most {self._largest})"
            )
        for length in lengths:
            self._starts.append(self._tokens)
            self._tokens += length
        self._bytes += num_bytes
        content = tokens.astype(self._dtype).tobytes()
        with typed_errors(self._folder / self._name):
            self._file.write(content)
        self._hash.update(content)
        self._checksum(content)

    def close(self) -> ShardRecord:
        """Commit the shard: flush, sync and rename, tokens last."""
        if self._pending:
            self._crcs.append(google_crc32c.value(self._pending))
        documents = np.array([*self._starts, self._tokens], "<i8").tobytes()
        crc = np.array(self._crcs, "<u4").tobytes()
        with typed_errors(self._folder / self._name):
            _sync(self._file)
            for kind, content in (("documents", documents), ("crc", crc)):
                with open(self._temporary(kind), "wb") as file:
                    file.write(content)
                    _sync(file)
            for kind in reversed(FILES):
                os.replace(self._temporary(kind), self._folder / f"{self._name}.{kind}")
        digests = [self._hash.digest()] + [hashlib.sha256(c).digest() for c in (documents, crc)]
        whole = hashlib.sha256(b"".join(digests)).hexdigest()
        return ShardRecord(self._name, self._tokens, len(self._starts), self._bytes, whole)

    def abandon(self) -> None:
        """Drop what was written; the disk may be full."""
        with contextlib.suppress(OSError):  # closing writes what is buffered
            self._file.close()
        for kind in FILES:
            Path(self._temporary(kind)).unlink(missing_ok=True)

    def _checksum(self, content: bytes) -> None:
        content = self._pending + content
        whole = len(content) // CRC_BLOCK_BYTES * CRC_BLOCK_BYTES
        for start in range(0, whole, CRC_BLOCK_BYTES):
            self._crcs.append(google_crc32c.value(content[start : start + CRC_BLOCK_BYTES]))
        self._pending = content[whole:]

    def _temporary(self, kind: str) -> str:
        return str(self._folder / f".{self._name}.{kind}.partial")


class Shard:
    """One shard, opened for reading. Every block is verified when it is first touched."""

    def __init__(self, path: str, record: ShardRecord, dtype: np.dtype):
        """Open `path` (without extension).

        Raises:
            DataError: a file is missing or has another size than the manifest says.
        """
        self.record = record
        self.path = path
        self._dtype = dtype.newbyteorder("<")
        self._file = f"{path}.tokens"
        _check_size(self._file, record.tokens * dtype.itemsize)
        blocks = -(-record.tokens * dtype.itemsize // CRC_BLOCK_BYTES)
        self._crcs = _read_array(f"{path}.crc", "<u4", blocks)
        self.document_starts = _read_array(f"{path}.documents", "<i8", record.documents + 1)
        if self.document_starts[-1] != record.tokens or np.any(np.diff(self.document_starts) < 0):
            raise DataError(f"{path}.documents: offsets are not those of {record.tokens} tokens")
        self._verified = np.zeros(blocks, bool)
        self._all_verified = False
        self._tokens: np.ndarray | None = None
        if not storage.is_remote(path) and record.tokens:
            self._tokens = np.memmap(self._file, self._dtype, "r").view(np.ndarray)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `[start, stop)` in the stored dtype. Raises DataError when a block is damaged."""
        if stop <= start:
            return np.zeros(0, self._dtype)
        if self._tokens is None:
            return self._gather_remote(np.array([start]), stop - start)[0]
        self._verify(np.array([start]), stop - start)
        return self._tokens[start:stop]

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Rows of `length` tokens, all inside the shard: int64 `[n]` → `[n, length]`."""
        if self._tokens is None:
            return self._gather_remote(starts, length)
        self._verify(starts, length)
        # One C-level copy per row; a fancy index of every token would be 4 times slower.
        return np.lib.stride_tricks.sliding_window_view(self._tokens, length)[starts]

    def prefetch(self, starts: np.ndarray, length: int) -> None:
        """Begin to fetch what `gather` will read; nothing to do for a local shard."""
        if self._tokens is None:
            self._request(starts, length)

    def verify(self) -> None:
        """Check every block. Raises DataError naming the first that is damaged."""
        if self._tokens is not None:
            self._verify(np.array([0]), self.record.tokens)
            return
        per_block = REMOTE_BLOCK_BYTES // self._dtype.itemsize
        for block in range(-(-self.record.tokens // per_block)):
            self._fetch(block)

    def _verify(self, starts: np.ndarray, length: int) -> None:
        if self._all_verified or not length:
            return
        size = self._dtype.itemsize
        first = starts * size // CRC_BLOCK_BYTES
        last = ((starts + length) * size - 1) // CRC_BLOCK_BYTES
        touched = first[:, None] + np.arange(int((last - first).max()) + 1)
        touched = np.minimum(touched, last[:, None])
        for block in np.unique(touched[~self._verified[touched]]):
            begin = int(block) * CRC_BLOCK_BYTES // size
            assert self._tokens is not None
            content = self._tokens[begin : begin + CRC_BLOCK_BYTES // size].tobytes()
            self._check_block(int(block), content)
        self._all_verified = bool(self._verified.all())

    def _check_block(self, block: int, content: bytes) -> None:
        found = google_crc32c.value(content)
        if found != int(self._crcs[block]):
            raise DataError(
                f"{self._file}: bytes {block * CRC_BLOCK_BYTES} to "
                f"{block * CRC_BLOCK_BYTES + len(content) - 1} are damaged (CRC32C {found:08x}, "
                f"written as {int(self._crcs[block]):08x}); restore the file from a copy, or "
                "remove the store and tokenize again"
            )
        self._verified[block] = True

    def _gather_remote(self, starts: np.ndarray, length: int) -> np.ndarray:
        blocks = {number: future.result() for number, future in self._request(starts, length)}
        rows = np.empty((len(starts), length), self._dtype)
        per_block = REMOTE_BLOCK_BYTES // self._dtype.itemsize
        for row, start in zip(rows, starts.tolist(), strict=True):
            done = 0
            while done < length:
                number, offset = divmod(start + done, per_block)
                part = blocks[number][offset : offset + length - done]
                row[done : done + len(part)] = part
                done += len(part)
        return rows

    def _request(self, starts: np.ndarray, length: int) -> list[tuple[int, Future[np.ndarray]]]:
        """Ask for the blocks under some rows, all at once: numbers and futures."""
        per_block = REMOTE_BLOCK_BYTES // self._dtype.itemsize
        bounds = zip(
            (starts // per_block).tolist(),
            ((starts + length - 1) // per_block).tolist(),
            strict=True,
        )
        wanted = sorted({number for first, last in bounds for number in range(first, last + 1)})
        return [
            (number, REMOTE.request((self._file, number), partial(self._fetch, number)))
            for number in wanted
        ]

    def _fetch(self, block: int) -> np.ndarray:
        """Read one range of an object and verify it."""
        begin = block * REMOTE_BLOCK_BYTES
        end = min(begin + REMOTE_BLOCK_BYTES, self.record.tokens * self._dtype.itemsize)
        content = storage.read_range(self._file, begin, end)
        for offset in range(0, len(content), CRC_BLOCK_BYTES):
            part = content[offset : offset + CRC_BLOCK_BYTES]
            self._check_block((begin + offset) // CRC_BLOCK_BYTES, part)
        return np.frombuffer(content, self._dtype)


def shard_sha256(path: str) -> str:
    """The hash that a ShardRecord keeps, from the files."""
    digests = []
    for kind in FILES:
        digest = hashlib.sha256()
        with storage.open_file(f"{path}.{kind}") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        digests.append(digest.digest())
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _read_array(path: str, dtype: str, count: int) -> np.ndarray:
    _check_size(path, count * np.dtype(dtype).itemsize)
    return np.frombuffer(storage.read_bytes(path), dtype)


def _check_size(path: str, expected: int) -> None:
    if not storage.exists(path):
        raise DataError(f"{path}: this file of the token store is missing")
    found = storage.size(path)
    if found != expected:
        raise DataError(
            f"{path}: has {found} bytes where the manifest says {expected}; the file was cut off "
            "or is of another store"
        )


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
