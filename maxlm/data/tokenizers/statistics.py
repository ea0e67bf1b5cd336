"""How well a tokenizer suits texts: bytes per token by group, unknowns, use of the vocabulary.

In go a tokenizer and (group, text) pairs, read once; out come counts by group and in all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from maxlm.data.tokenizers.protocol import Tokenizer

_BATCH_TEXTS = 256
_BATCH_CHARACTERS = 1 << 20


@dataclass
class GroupCounts:
    """Counts of one group of texts (a file, a language)."""

    group: str
    texts: int = 0
    bytes: int = 0
    characters: int = 0
    tokens: int = 0
    unknowns: int = 0
    single_byte_tokens: int = 0
    not_restored: int = 0
    ids_used: int = 0

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes per token; 0 without tokens."""
        return self.bytes / self.tokens if self.tokens else 0.0

    def to_json(self) -> dict[str, Any]:
        """The counts and their ratio, for JSON."""
        return {**vars(self), "bytes_per_token": self.bytes_per_token}


@dataclass
class Statistics:
    """Counts by group in the order met, in all, and how the vocabulary is used."""

    groups: list[GroupCounts]
    total: GroupCounts
    vocab_size: int

    def to_json(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "groups": [group.to_json() for group in self.groups],
            "total": self.total.to_json(),
            "vocab_size": self.vocab_size,
        }


def measure(tokenizer: Tokenizer, texts: Iterable[tuple[str, str]]) -> Statistics:
    """Encode (group, text) pairs and count.

    `not_restored` counts texts that decoding does not give back; `single_byte_tokens` counts tokens
    of one byte outside of ASCII, what rare characters fall back to.
    """
    counts: dict[str, GroupCounts] = {}
    uses: dict[str, np.ndarray] = {}
    falls_back = _fallback_ids(tokenizer)
    for group, batch in _batches(texts):
        entry = counts.setdefault(group, GroupCounts(group))
        used = uses.setdefault(group, np.zeros(tokenizer.vocab_size, np.int64))
        for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            entry.texts += 1
            entry.bytes += len(text.encode("utf-8"))
            entry.characters += len(text)
            entry.tokens += len(ids)
            entry.not_restored += tokenizer.decode(ids) != text
            used += np.bincount(ids, minlength=tokenizer.vocab_size)
    total_used = np.zeros(tokenizer.vocab_size, np.int64)
    total = GroupCounts("total")
    for group, entry in counts.items():
        _count_ids(entry, uses[group], tokenizer.unk_id, falls_back)
        total_used += uses[group]
        for name in ("texts", "bytes", "characters", "tokens", "not_restored"):
            setattr(total, name, getattr(total, name) + getattr(entry, name))
    _count_ids(total, total_used, tokenizer.unk_id, falls_back)
    return Statistics(list(counts.values()), total, tokenizer.vocab_size)


def _count_ids(
    entry: GroupCounts, used: np.ndarray, unk_id: int | None, falls_back: np.ndarray
) -> None:
    entry.unknowns = int(used[unk_id]) if unk_id is not None else 0
    entry.single_byte_tokens = int(used[falls_back].sum())
    entry.ids_used = int(np.count_nonzero(used))


def _fallback_ids(tokenizer: Tokenizer) -> np.ndarray:
    """Ids of one byte that is no ASCII character: bool [vocab_size]."""
    single = np.flatnonzero(tokenizer.token_bytes() == 1).tolist()
    falls_back = np.zeros(tokenizer.vocab_size, bool)
    falls_back[[i for i in single if tokenizer.decode_bytes([i]) >= b"\x80"]] = True
    return falls_back


def _batches(texts: Iterable[tuple[str, str]]) -> Iterable[tuple[str, list[str]]]:
    """Consecutive texts of one group together, at most about a million characters."""
    current, characters = "", 0
    batch: list[str] = []
    for group, text in texts:
        full = len(batch) >= _BATCH_TEXTS or characters >= _BATCH_CHARACTERS
        if batch and (group != current or full):
            yield current, batch
            batch, characters = [], 0
        current = group
        batch.append(text)
        characters += len(text)
    if batch:
        yield current, batch
