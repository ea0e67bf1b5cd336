"""Batches that a benchmark trains on: rows of one document each, or packed rows of real text.

In: a token store, or nothing (then the shipped plays, each speech a document, byte by byte); out:
numpy batches. `full` and `packed` hold the same tokens; in `full` a row is one document, which is
the most that attention can have to do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import maxlm
from maxlm.batch import Batch
from maxlm.config.schema import DataConfig, parse_duration
from maxlm.data.loader import Loader, Source
from maxlm.data.open_sources import open_sources
from maxlm.data.rows import InMemoryTokens

SAMPLE = Path(maxlm.__file__).parent / "data" / "samples" / "tinyshakespeare.txt"


def make_batches(
    rows: str, store: str | None, *, length: int, batch_size: int, count: int, vocab_size: int
) -> list[Batch]:
    """`count` host batches `[batch_size, length]`.

    Args:
        rows: `full` or `packed`.
        store: folder of a token store; None: the sample.
        length: tokens of a row.
        batch_size: rows.
        count: how many batches.
        vocab_size: of the model; ids of the text have to lie below.

    Raises:
        DataError: the store cannot be read.
        ValueError: an id is not in the model's vocabulary.
    """
    mixture = {"mixture": {"text": {"store": store or "sample"}}}
    data = DataConfig.model_validate({**mixture, "length": length, "workers": 0})
    sources = open_sources(data) if store else {"text": _sample()}
    total = parse_duration(f"{count} steps")
    loader = Loader(sources, data, batch_size=batch_size, total=total)
    batches = [loader.batch(i * batch_size) for i in range(count)]
    largest = max(int(batch.tokens.max()) for batch in batches)
    if largest >= vocab_size:
        raise ValueError(f"{store} has token {largest}, but the model's vocabulary is {vocab_size}")
    return [_one_document(batch) for batch in batches] if rows == "full" else batches


def visible_share(batches: list[Batch]) -> float:
    """Query-key pairs that attention has to compute, of those that causality alone allows."""
    seen = possible = 0
    for batch in batches:
        for segments in batch.segment_ids:
            _, counts = np.unique(segments[segments > 0], return_counts=True)
            seen += int((counts * (counts + 1) // 2).sum())
            possible += len(segments) * (len(segments) + 1) // 2
    return seen / possible


def _one_document(batch: Batch) -> Batch:
    ones = np.ones_like(batch.segment_ids)
    positions = np.broadcast_to(np.arange(ones.shape[1], dtype=np.int32), ones.shape)
    return Batch(batch.tokens, batch.targets, ones.astype(np.float32), ones, positions.copy())


def _sample() -> Source:
    speeches = SAMPLE.read_bytes().split(b"\n\n")
    documents = [np.frombuffer(speech + b"\n\n", np.uint8).astype(np.int32) for speech in speeches]
    return Source(InMemoryTokens(documents), hash="tinyshakespeare, a document a speech")
