"""From spans of a token stream to the arrays of a batch, a whole batch at a time.

In come a token split (a store's, or an array in memory) and spans: which tokens lie in which row,
from which column on. Out goes a `Batch` with targets, loss weights, segment ids and positions,
found from the split's document starts. Windows cut by arithmetic and plans of whole documents both
speak spans (`RowSource`), so there is one way from row indices to arrays.

A span of n inputs beginning at token s reads tokens [s, s + n) and predicts [s + 1, s + n + 1). A
target that is the first token of a document has loss weight 0: its input belongs to another
document. Segments are numbered 1, 2, … within a row, 0 is padding; positions restart at 0 with
each segment.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from maxlm.batch import Batch


class TokenArray(Protocol):
    """What the loader needs of a token split; `maxlm.data.store.TokenSplit` is one."""

    num_tokens: int
    num_documents: int

    @property
    def document_starts(self) -> np.ndarray:
        """Token offsets of the documents, int64 `[num_documents + 1]`; the last is num_tokens."""

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `[start, stop)`, int32."""

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        """`length` tokens from each start: int64 `[n]` → int32 `[n, length]`, 0 past the end."""


class InMemoryTokens:
    """A token split held in memory: for tests, and for data that was made by a program."""

    def __init__(self, documents: list[np.ndarray]):
        """Take the documents' token ids, special tokens included."""
        lengths = [len(document) for document in documents]
        self.document_starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.num_documents = len(documents)
        self.num_tokens = int(self.document_starts[-1])
        self._tokens = np.concatenate([*documents, np.zeros(0)]).astype(np.int32)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `[start, stop)`, int32."""
        return self._tokens[start:stop]

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        """`length` tokens from each start, zeros past the end; int32 `[n, length]`."""
        rows = np.zeros((len(starts), length), np.int32)
        for row, start in zip(rows, starts, strict=True):
            tokens = self._tokens[start : start + length]
            row[: len(tokens)] = tokens
        return rows


class Spans(NamedTuple):
    """Pieces of a token stream laid into rows, ordered by row and column; all int64 `[k]`."""

    rows: np.ndarray
    columns: np.ndarray
    starts: np.ndarray  # first input token
    lengths: np.ndarray  # input tokens, at least 1


class RowSource(Protocol):
    """A split laid out as rows of one length, each target of the split in exactly one of them."""

    num_rows: int
    length: int

    def spans(self, indices: np.ndarray) -> Spans:
        """What rows `indices` (int64 `[n]`) are made of; row numbers count from 0 to n - 1."""


def assemble(tokens: TokenArray, spans: Spans, num_rows: int, length: int) -> Batch:
    """Fill the arrays of `num_rows` rows of `length` from their spans. All `[num_rows, length]`."""
    starts, doc_starts = spans.starts, tokens.document_starts
    # Documents that begin after a span's first input and not after its last target.
    first = np.searchsorted(doc_starts, starts, side="right")
    last = np.searchsorted(doc_starts, starts + spans.lengths, side="right")
    owner, number = expand_counts(last - first)
    begins = doc_starts[first[owner] + number] - starts[owner]  # relative to the span
    origin = spans.rows * length + spans.columns  # of a span in the flattened batch
    cuts = origin[owner] + begins
    inside = cuts[begins < spans.lengths[owner]]

    loss_weights = np.ones(num_rows * length, np.float32)
    loss_weights[cuts - 1] = 0.0
    segment_ids, positions, padding = _segments(spans, origin, inside, num_rows, length)
    inputs, targets = _tokens(tokens, spans, origin, num_rows, length)
    if padding is not None:
        for array in (inputs, targets, positions, loss_weights):
            array.reshape(-1)[padding] = 0
    shape = (num_rows, length)
    return Batch(
        tokens=inputs.reshape(shape),
        targets=targets.reshape(shape),
        loss_weights=loss_weights.reshape(shape),
        segment_ids=segment_ids.reshape(shape),
        positions=positions.reshape(shape),
    )


def padding_batch(num_rows: int, length: int) -> Batch:
    """Rows of padding only: weight 0, segment 0."""
    zeros = [np.zeros((num_rows, length), np.int32) for _ in range(4)]
    return Batch(zeros[0], zeros[1], np.zeros((num_rows, length), np.float32), zeros[2], zeros[3])


def _segments(
    spans: Spans, origin: np.ndarray, inside: np.ndarray, num_rows: int, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Segment ids and positions, flat int32, and a mask of padding if there is any."""
    ends = origin + spans.lengths
    row_ends = (spans.rows + 1) * length
    is_last = np.ones(len(ends), bool)
    is_last[:-1] = spans.rows[1:] != spans.rows[:-1]
    pads = ends[is_last & (ends < row_ends)]
    edges = np.concatenate([origin, inside, pads, [num_rows * length]])
    edges.sort()
    lengths = edges[1:] - edges[:-1]
    if not lengths.all():  # a document without tokens begins where the next one does
        edges = np.append(edges[:-1][lengths > 0], num_rows * length)
        lengths = edges[1:] - edges[:-1]
    pieces = edges[:-1]
    first_of_row = np.searchsorted(pieces, _count_up(num_rows) * length)
    ids = _count_up(len(pieces)) - first_of_row.astype(np.int32)[pieces // length] + 1
    if len(pads):
        ids[np.searchsorted(pieces, pads)] = 0
    segment_ids = np.repeat(ids, lengths)
    positions = np.repeat(pieces.astype(np.int32), lengths)
    np.subtract(_count_up(num_rows * length), positions, out=positions)
    return segment_ids, positions, (segment_ids == 0 if len(pads) else None)


def _tokens(
    tokens: TokenArray, spans: Spans, origin: np.ndarray, num_rows: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, int32; what no span covers is left unset for the caller to zero."""
    if len(spans.starts) == num_rows:  # one span a row, from its first column
        both = tokens.gather(spans.starts, length + 1)
        return both[:, :-1].copy(), both[:, 1:].copy()  # a single row's views would share memory
    inputs = np.empty(num_rows * length, np.int32)
    targets = np.empty(num_rows * length, np.int32)
    stops = spans.starts + spans.lengths + 1
    for to, start, stop in zip(origin.tolist(), spans.starts.tolist(), stops.tolist(), strict=True):
        piece = tokens.read(start, stop)
        inputs[to : to + len(piece) - 1] = piece[:-1]
        targets[to : to + len(piece) - 1] = piece[1:]
    return inputs, targets


@lru_cache(maxsize=64)
def _count_up(size: int) -> np.ndarray:
    """0, 1, …, size - 1, int32, kept because every batch of a shape needs the same."""
    numbers = np.arange(size, dtype=np.int32)
    numbers.setflags(write=False)
    return numbers


def expand_counts(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For counts (2, 0, 3): owners (0, 0, 2, 2, 2) and numbers within each (0, 1, 0, 1, 2)."""
    owner = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(counts) - counts
    return owner, np.arange(len(owner)) - before[owner]
