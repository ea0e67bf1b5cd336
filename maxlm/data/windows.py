"""Windows cut by arithmetic: row w of a split reads tokens [w T, w T + T) and nothing is stored.

In comes a split and a length T, chosen when loading; out go row indices turned into spans, for
training in any order and for evaluation from first to last. Windows overlap by one token (the last
target of one is the first input of the next); the last is padded. A split of N tokens has N - 1
targets and ceil((N - 1) / T) windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

import numpy as np

from maxlm.batch import Batch
from maxlm.data.rows import Spans, TokenArray, assemble, padding_batch
from maxlm.errors import DataError

Rows = np.ndarray | slice | None


class CutRows:
    """The windows of one split, as rows."""

    def __init__(self, tokens: TokenArray, length: int):
        """Cut `tokens` into windows of `length` inputs. Raises DataError when there is no target."""
        self.length = length
        self.num_targets = tokens.num_tokens - 1
        if self.num_targets < 1:
            raise DataError(
                f"the split has {tokens.num_tokens} tokens: a window needs at least one and its "
                "successor"
            )
        self.num_rows = -(-self.num_targets // length)

    def spans(self, indices: np.ndarray) -> Spans:
        """One span per window. `indices`: int64 `[n]` in `[0, num_rows)`."""
        starts = indices * self.length
        lengths = np.minimum(self.length, self.num_targets - starts)
        return Spans(np.arange(len(indices)), np.zeros(len(indices), np.int64), starts, lengths)


def eval_batches(
    tokens: TokenArray,
    length: int,
    batch_size: int,
    max_tokens: int | None = None,
    rows: Rows = None,
) -> Iterator[Batch]:
    """Batches that hold every target of a split exactly once, in order.

    Args:
      tokens: the split.
      length: inputs per window, T.
      batch_size: rows of the global batch, B; the last batch is filled up with padding rows of
        weight 0, so that every batch has the same shape.
      max_tokens: only the first so many targets; unset: all.
      rows: which rows of the global batch this process needs; unset: all B.

    Yields: `Batch` of arrays `[len(rows), T]`. Raises DataError when the split has no target.
    """
    windows = CutRows(tokens, length)
    if max_tokens is not None:
        windows.num_targets = min(windows.num_targets, max_tokens)
        windows.num_rows = -(-windows.num_targets // length)
    wanted = row_numbers(rows, batch_size)
    for first in range(0, windows.num_rows, batch_size):
        indices = first + wanted
        real = indices[indices < windows.num_rows]
        batch = padding_batch(len(wanted), length)
        if len(real) == len(wanted):
            batch = assemble(tokens, windows.spans(real), len(real), length)
        elif len(real):
            part = assemble(tokens, windows.spans(real), len(real), length)
            for whole, filled in zip(batch, part, strict=True):
                whole[indices < windows.num_rows] = filled
        yield batch


def num_eval_batches(
    tokens: TokenArray, length: int, batch_size: int, max_tokens: int | None = None
) -> int:
    """How many batches `eval_batches` yields."""
    targets = tokens.num_tokens - 1
    targets = targets if max_tokens is None else min(targets, max_tokens)
    return ceil(ceil(targets / length) / batch_size)


def row_numbers(rows: Rows, batch_size: int) -> np.ndarray:
    """Row numbers, int64, of a slice, an index array or None (all). Raises DataError outside."""
    if rows is None or isinstance(rows, slice):
        return np.arange(batch_size)[rows if rows is not None else slice(None)]
    numbers = np.asarray(rows, np.int64)
    if numbers.size and (numbers.min() < 0 or numbers.max() >= batch_size):
        raise DataError(
            f"rows {numbers.min()} to {numbers.max()} asked of a batch of {batch_size} rows"
        )
    return numbers
