"""The token store: tokenized text with its manifest and tokenizer, read by memory map or by range.

    STORE/manifest.json              what came in, counts, hashes, the shards of every split
    STORE/tokenizer/                 the tokenizer that wrote it
    STORE/SPLIT/00000.tokens …       see `maxlm.data.shards`

Documents are stored one after another with their markers: `[bos] tokens [eos]`.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from functools import cached_property
from typing import Any

import numpy as np

from maxlm import storage
from maxlm.data.shards import REMOTE, Shard, ShardRecord
from maxlm.data.tokenizers import Tokenizer, load_tokenizer
from maxlm.errors import DataError, did_you_mean

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


class TokenStore:
    """A store's manifest, tokenizer and splits."""

    def __init__(self, path: str):
        """Open a store.

        Raises:
            DataError: there is none at `path`, it is unfinished, damaged or of a newer version.
        """
        self.path = path.rstrip("/")
        where = storage.join(self.path, MANIFEST)
        if not storage.exists(where):
            state = "is not finished" if storage.exists(self.path) else "does not exist"
            raise DataError(
                f"{self.path}: this token store {state} (no {MANIFEST}); write it with "
                "`maxlm data tokenize`"
            )
        content = storage.read_bytes(where)
        try:
            self.manifest: dict[str, Any] = json.loads(content)
            version = self.manifest["format_version"]
            self.hash = _content_hash(self.manifest) if version <= FORMAT_VERSION else ""
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{where}: not the manifest of a token store: {error}") from error
        if version > FORMAT_VERSION:
            raise DataError(
                f"{where}: format version {version} is newer than this maxlm reads "
                f"({FORMAT_VERSION}); update maxlm"
            )

    @property
    def splits(self) -> list[str]:
        """Names of the splits."""
        return list(self.manifest["splits"])

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that wrote the store. Raises DataError when it is not the manifest's."""
        tokenizer = load_tokenizer(storage.join(self.path, "tokenizer"))
        expected = self.manifest["tokenizer"]["hash"]
        if tokenizer.hash != expected:
            raise DataError(
                f"{self.path}/tokenizer: hash {tokenizer.hash[:12]}… is not that of the tokenizer "
                f"which wrote the store ({expected[:12]}…)"
            )
        return tokenizer

    def split(self, name: str) -> TokenSplit:
        """Open a split. Raises DataError when there is none of that name or a shard is damaged."""
        if name not in self.manifest["splits"]:
            raise DataError(
                f"{self.path}: no split '{name}'{did_you_mean(name, self.splits)}; it has "
                f"{', '.join(self.splits) or 'none'}"
            )
        return TokenSplit(
            storage.join(self.path, name),
            self.manifest["splits"][name],
            np.dtype(self.manifest["dtype"]),
        )


class TokenSplit:
    """The tokens of one split as one long array, over all its shards."""

    def __init__(self, path: str, description: dict[str, Any], dtype: np.dtype):
        """Open the shards that the manifest lists. Raises DataError when one is damaged."""
        self.path = path
        records = [ShardRecord(**shard) for shard in description["shards"]]
        self.shards: list[Shard] = _open_all(path, records, dtype)
        self.num_tokens: int = sum(r.tokens for r in records)
        self.num_documents: int = sum(r.documents for r in records)
        self.num_bytes: int = sum(r.bytes for r in records)
        self._offsets = np.cumsum([0, *(r.tokens for r in records)])  # [shards + 1]
        self._shard_starts = self._offsets[:-1].tolist()

    @cached_property
    def document_starts(self) -> np.ndarray:
        """Token offsets of the documents in the split, int64 `[num_documents + 1]`."""
        parts = [
            shard.document_starts[:-1] + offset
            for shard, offset in zip(self.shards, self._offsets[:-1], strict=True)
        ]
        return np.concatenate([*parts, [self.num_tokens]]).astype(np.int64)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `[start, stop)`, cut to the split; int32.

        Raises:
            DataError: a block that it touches is damaged.
        """
        start, stop = max(start, 0), min(stop, self.num_tokens)
        first = max(bisect_right(self._shard_starts, start) - 1, 0)
        if first < len(self.shards):
            begin, shard = self._shard_starts[first], self.shards[first]
            if stop <= begin + shard.record.tokens:  # whole documents are read so, one by one
                return shard.read(start - begin, stop - begin).astype(np.int32)
        parts = []
        for shard, offset in zip(self.shards, self._offsets[:-1], strict=True):
            begin = max(start - offset, 0)
            end = min(stop - offset, shard.record.tokens)
            if begin < end:
                parts.append(shard.read(int(begin), int(end)))
        return np.concatenate([*parts, np.zeros(0, np.int32)]).astype(np.int32)

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        """`length` tokens from each start, zeros past the end: int64 `[n]` → int32 `[n, length]`.

        Raises:
            DataError: a block that it touches is damaged.
        """
        starts = np.asarray(starts, np.int64)
        shard_of = np.searchsorted(self._offsets, starts, "right") - 1
        shard_of = np.minimum(shard_of, len(self.shards) - 1)
        inside = starts + length <= self._offsets[shard_of + 1]
        if inside.all() and (shard_of == shard_of[:1]).all() and len(starts):
            shard = self.shards[int(shard_of[0])]
            return shard.gather(starts - self._offsets[shard_of], length).astype(np.int32)
        rows = np.zeros((len(starts), length), np.int32)
        numbers = np.unique(shard_of[inside])
        for number in numbers:  # of remote shards, all before the first is waited for
            chosen = inside & (shard_of == number)
            self.shards[int(number)].prefetch(starts[chosen] - self._offsets[number], length)
        for number in numbers:
            chosen = np.flatnonzero(inside & (shard_of == number))
            local = starts[chosen] - self._offsets[number]
            rows[chosen] = self.shards[int(number)].gather(local, length)
        for row in np.flatnonzero(~inside):  # across two shards, or past the end
            tokens = self.read(int(starts[row]), int(starts[row]) + length)
            rows[row, : len(tokens)] = tokens
        return rows

    def verify(self) -> None:
        """Check every block of every shard. Raises DataError naming the first that is damaged."""
        for shard in self.shards:
            shard.verify()


def _open_all(path: str, records: list[ShardRecord], dtype: np.dtype) -> list[Shard]:
    def open_one(record: ShardRecord) -> Shard:
        return Shard(storage.join(path, record.name), record, dtype)

    # A shard's sizes and offsets take several requests: hundreds of shards are opened side by side.
    return REMOTE.map(open_one, records) if storage.is_remote(path) else [*map(open_one, records)]


def _content_hash(manifest: dict[str, Any]) -> str:
    """Names what a reader gets: ids, documents and tokenizer.

    Not what wrote them: a store that another version or other paths gave, shard for shard the same,
    is the same data.
    """
    content = {
        "dtype": manifest["dtype"],
        "tokenizer": manifest["tokenizer"]["hash"],
        "splits": {name: split["shards"] for name, split in manifest["splits"].items()},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
