"""What decides the content of a token store, besides the sources' own bytes and the tokenizer.

Also the two ways in which documents are assigned to splits: by a hash of their text, and by cutting
each text.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any

import numpy as np

from maxlm.data.sources.source_file import ReadOptions
from maxlm.errors import ConfigError, did_you_mean

TRAIN = "train"


class SplitBy(StrEnum):
    """How documents come into splits."""

    HASH = "hash"  # each whole, by its text: equal texts share a split
    POSITION = "position"  # each cut: its first part trains, its last validates


class Markers(StrEnum):
    """Which of the tokenizer's special tokens enclose a document."""

    BOTH = "both"
    BOS = "bos"
    EOS = "eos"
    NONE = "none"


@dataclass(frozen=True)
class StoreSettings:
    """Settings that a store keeps; another value makes another store.

    Attributes:
        splits: share of every split besides `train`, which gets the rest.
        split_by: how documents come into splits.
        document_markers: what encloses a document.
        dtype: `uint16` or `uint32`; None: the smaller one that holds the vocabulary.
        shard_bytes: text in one shard, about; None: by the sources' size.
        read: how sources are read.

    Raises:
        ConfigError: a value cannot be used.
    """

    splits: dict[str, float] = field(default_factory=dict)
    split_by: SplitBy = SplitBy.HASH
    document_markers: Markers = Markers.BOTH
    dtype: str | None = None
    shard_bytes: int | None = None
    read: ReadOptions = field(default_factory=ReadOptions)

    def __post_init__(self) -> None:
        for name, share in self.splits.items():
            if name == TRAIN or not name.isidentifier():
                raise ConfigError(
                    f"split '{name}': a split's name is a word other than '{TRAIN}', which gets "
                    "what the others leave"
                )
            if not 0 < share < 1:
                raise ConfigError(f"split {name}={share:g}: a share lies between 0 and 1")
        if sum(self.splits.values()) >= 1:
            shares = " + ".join(f"{name} {share:g}" for name, share in self.splits.items())
            raise ConfigError(f"splits leave nothing for '{TRAIN}': {shares} is 1 or more")
        if self.shard_bytes is not None and self.shard_bytes < 1:
            raise ConfigError(f"shard bytes {self.shard_bytes}: must be at least 1")
        if self.read.max_document_bytes < 1:
            raise ConfigError(f"max document bytes {self.read.max_document_bytes}: at least 1")
        if self.read.document_separator == "":
            raise ConfigError("the document separator is empty; leave the option out instead")

    @property
    def split_names(self) -> list[str]:
        """All splits, `train` first."""
        return [TRAIN, *self.splits]

    def dtype_for(self, vocab_size: int) -> np.dtype:
        """The dtype of ids. Raises ConfigError when the chosen one does not hold them."""
        fitting = "uint16" if vocab_size <= 1 << 16 else "uint32"
        dtype = self.dtype or fitting
        if dtype not in ("uint16", "uint32"):
            raise ConfigError(
                f"dtype '{dtype}'{did_you_mean(dtype, ['uint16', 'uint32'])}: "
                "there are uint16 and uint32"
            )
        if dtype == "uint16" and fitting == "uint32":
            raise ConfigError(
                f"dtype uint16 holds ids up to 65,535, the tokenizer has {vocab_size:,}: use uint32"
            )
        return np.dtype(dtype)

    def check_documents(self, count: int, where: str) -> None:
        """Refuse to cut several documents: the splits would share each of them.

        Raises:
            ConfigError: there is more than one, and `split_by` is `position`.
        """
        if count > 1 and self.splits and self.split_by == SplitBy.POSITION:
            raise ConfigError(
                f"--split-by position cuts one long text, but {where} more than one document: the "
                "splits would share each of them. Leave the option out, so that each document is "
                "whole in one split (remove what was begun of the store), or give a single text"
            )

    def parts(self, text: str, encoded: bytes) -> list[tuple[str, str, int]]:
        """Where a document goes: (split, text, its UTF-8 bytes)."""
        if not self.splits:
            return [(TRAIN, text, len(encoded))]
        if self.split_by == SplitBy.HASH:
            return [(self._split_of(encoded), text, len(encoded))]
        return [
            (name, text[start:stop], len(text[start:stop].encode()))
            for name, start, stop in self._cuts(len(text))
            if stop > start
        ]

    def to_dict(self) -> dict[str, Any]:
        """As JSON, for the manifest."""
        return {**asdict(self), "read": asdict(self.read)}

    def _split_of(self, encoded: bytes) -> str:
        digest = hashlib.blake2b(encoded, digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2.0**64
        reached = 0.0
        for name, share in self.splits.items():
            reached += share
            if place < reached:
                return name
        return TRAIN

    def _cuts(self, length: int) -> list[tuple[str, int, int]]:
        """Character ranges; decimal sums, so that a share of 0.1 cuts at `int(length * 0.9)`."""
        reached = 1 - sum((Decimal(repr(share)) for share in self.splits.values()), Decimal(0))
        cuts = [(TRAIN, 0, int(length * float(reached)))]
        for name, share in self.splits.items():
            reached += Decimal(repr(share))
            cuts.append((name, cuts[-1][2], int(length * float(reached))))
        return cuts
