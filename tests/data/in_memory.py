"""Token splits in memory and plain, slow statements of what the loader must give."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from maxlm.batch import Batch
from maxlm.config.schema import DataConfig
from maxlm.data.loader import Loader, Source
from maxlm.data.rows import InMemoryTokens


def documents_of(lengths: list[int], first: int = 0) -> InMemoryTokens:
    """Documents of these lengths whose token ids are `first + index in the split`: all distinct."""
    ends = np.cumsum([0, *lengths])
    return InMemoryTokens([np.arange(a, b) + first for a, b in pairwise(ends)])


def random_documents(seed: int, count: int, mean: int = 40, first: int = 0) -> InMemoryTokens:
    """`count` documents of 1 and more tokens, ids distinct."""
    lengths = 1 + np.random.default_rng(seed).geometric(1 / mean, count)
    return documents_of(lengths.tolist(), first)


def loader_of(
    splits: dict[str, InMemoryTokens],
    total: str = "1000 steps",
    batch_size: int = 8,
    weights: dict[str, float] | None = None,
    **data: object,
) -> Loader:
    """A loader over splits in memory."""
    from maxlm.config.schema import parse_duration

    weights = weights or dict.fromkeys(splits, 1.0)
    mixture = {name: {"store": name, "weight": weights[name]} for name in splits}
    config = DataConfig.model_validate({"mixture": mixture, "length": 16, "workers": 0, **data})
    sources = {name: Source(split, hash=f"hash of {name}") for name, split in splits.items()}
    return Loader(sources, config, batch_size=batch_size, total=parse_duration(total))


def expected_row(split: InMemoryTokens, spans: list[tuple[int, int]], length: int) -> list[list]:
    """What one row must hold, computed token by token from its (start, inputs) spans."""
    tokens = split.read(0, split.num_tokens)
    begins = set(split.document_starts.tolist())
    row: list[list] = [[], [], [], [], []]
    segment, position = 0, 0
    for start, count in spans:
        for offset, index in enumerate(range(start, start + count)):
            if offset == 0 or index in begins:
                segment, position = segment + 1, 0
            weight = 0.0 if index + 1 in begins else 1.0
            values = (tokens[index], tokens[index + 1], weight, segment, position)
            for column, value in zip(row, values, strict=True):
                column.append(value)
            position += 1
    for column in row:
        column.extend([0] * (length - len(column)))
    return row


def assert_equal(left: Batch, right: Batch) -> None:
    """Two batches are the same, array by array."""
    for name, a, b in zip(Batch._fields, left, right, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
        assert a.dtype == b.dtype, name
