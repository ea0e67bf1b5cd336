"""The manifest of a token store: what came in, with which settings, and every shard with its hash.

In go settings, sources, the tokenizer and the units' results; out comes JSON that depends on
nothing else: no time, no absolute path, no number of workers. Its hash names the store's content.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

import maxlm
from maxlm.data.shards import ShardRecord
from maxlm.data.store import FORMAT_VERSION
from maxlm.data.tokenizers import Tokenizer


def manifest_head(
    *,
    settings: dict[str, Any],
    tokenizer: Tokenizer,
    dtype: np.dtype,
    sources: list[dict[str, Any]],
) -> dict[str, Any]:
    """What is known before the first document is read.

    Args:
        settings: as `StoreSettings.to_dict` gives them.
        tokenizer: that writes the store.
        dtype: of the ids.
        sources: name, format, bytes and sha256 of every file.
    """
    return {
        "format_version": FORMAT_VERSION,
        "maxlm_version": maxlm.__version__,
        "dtype": dtype.name,
        "tokenizer": {
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "hash": tokenizer.hash,
        },
        "settings": settings,
        "sources": sources,
    }


def manifest_body(
    shards: Mapping[str, list[ShardRecord]], skipped: Iterable[Mapping[str, int]]
) -> dict[str, Any]:
    """What the documents gave.

    Args:
        shards: by split, in order.
        skipped: counts by reason, of any number of units.
    """
    left_out: Counter[str] = Counter()
    for counts in skipped:
        left_out.update(counts)
    return {
        "skipped": dict(sorted(left_out.items())),
        "splits": {
            name: {
                "documents": sum(record.documents for record in records),
                "tokens": sum(record.tokens for record in records),
                "bytes": sum(record.bytes for record in records),
                "shards": [record.to_dict() for record in records],
            }
            for name, records in shards.items()
        },
    }


def manifest_text(manifest: dict[str, Any]) -> str:
    """The manifest as it is stored."""
    return json.dumps(manifest, indent=1) + "\n"


def describe_difference(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines `key: before → now` for what differs, nested keys dotted."""
    lines = []
    for key in [*before, *(key for key in now if key not in before)]:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += describe_difference(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"  {prefix}{key}: {_show(old)} → {_show(new)}")
    return lines


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "…"
