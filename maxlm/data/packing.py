"""Whole-document plans: documents packed uncut into rows by best fit, saved with their hash.

In come a split's document starts and a row length; out goes a `PackingPlan`: for every row the
spans that fill it. A document of n tokens takes n - 1 columns, since its last token is only a
target; a longer one than a row is cut into pieces that overlap by one token, like windows.
Documents of fewer than two tokens have no target and are left out. Packing is best fit decreasing
(Johnson 1973: at most 11/9 of the least number of rows), done for all documents of one length at
once, so millions of documents take seconds. Plans are kept beside the store and checked when read.
"""

from __future__ import annotations

import hashlib
import io
import logging
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from maxlm import storage
from maxlm.data.rows import Spans, TokenArray, expand_counts
from maxlm.errors import DataError, StorageError

PLAN_VERSION = 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackingPlan:
    """Rows of `length` columns, filled with spans of whole documents."""

    length: int
    row_offsets: (
        np.ndarray
    )  # [rows + 1] int64, row r holds spans [row_offsets[r], row_offsets[r+1])
    starts: np.ndarray  # [spans] int64, first input token
    lengths: np.ndarray  # [spans] int32, inputs
    num_skipped: int  # documents without a target

    @property
    def num_rows(self) -> int:
        """Rows that the whole split fills."""
        return len(self.row_offsets) - 1

    @property
    def fill(self) -> float:
        """Share of the columns that hold a token."""
        return float(self.lengths.sum(dtype=np.int64)) / (self.num_rows * self.length)

    @property
    def hash(self) -> str:
        """SHA-256 of everything that the plan says."""
        digest = hashlib.sha256(f"{PLAN_VERSION} {self.length} {self.num_skipped}".encode())
        for array in (self.row_offsets, self.starts, self.lengths):
            digest.update(array.astype(array.dtype.newbyteorder("<"), order="C").data)
        return digest.hexdigest()


class WholeRows:
    """The rows of a plan; row indices to spans."""

    def __init__(self, plan: PackingPlan):
        """Read rows from `plan`."""
        self.plan = plan
        self.length = plan.length
        self.num_rows = plan.num_rows

    def spans(self, indices: np.ndarray) -> Spans:
        """The documents of each row, left to right. `indices`: int64 `[n]`."""
        first = self.plan.row_offsets[indices]
        rows, number = expand_counts(self.plan.row_offsets[indices + 1] - first)
        which = first[rows] + number
        lengths = self.plan.lengths[which].astype(np.int64)
        before = np.cumsum(lengths) - lengths
        first_of_row = np.searchsorted(rows, np.arange(len(indices)))
        return Spans(rows, before - before[first_of_row][rows], self.plan.starts[which], lengths)


def plan_whole_documents(document_starts: np.ndarray, length: int) -> PackingPlan:
    """Pack documents, given by their starts (int64 `[documents + 1]`), into rows of `length`.

    Raises DataError when no document has two tokens.
    """
    inputs = np.diff(document_starts) - 1
    kept = inputs > 0
    if not kept.any():
        raise DataError(
            f"none of the {len(inputs)} documents has two tokens, so there is nothing to predict"
        )
    pieces = -(-inputs[kept] // length)
    owner, number = expand_counts(pieces)
    starts = document_starts[:-1][kept][owner] + number * length
    lengths = np.minimum(length, inputs[kept][owner] - number * length)
    rows = _best_fit_decreasing(lengths, length)
    order = np.argsort(rows, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows))]).astype(np.int64)
    return PackingPlan(
        length=length,
        row_offsets=offsets,
        starts=starts[order].astype(np.int64),
        lengths=lengths[order].astype(np.int32),
        num_skipped=int((~kept).sum()),
    )


def _best_fit_decreasing(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """Bin of each item, longest items first, each into the fullest bin that still takes it.

    Items of one size are placed together: the fullest bin that takes one remains the fullest until
    it takes no more, so bins are visited once each in the order of their free space.
    """
    order = np.argsort(-sizes, kind="stable")
    ordered = sizes[order]
    bins = np.empty(len(sizes), np.int64)
    free: list[list[np.ndarray]] = [[] for _ in range(capacity + 1)]  # bins by free space
    has_free = bytearray(capacity + 1)  # which of these lists are not empty
    num_bins = 0

    def put(space: int, which: np.ndarray) -> None:
        if space and len(which):
            free[space].append(which)
            has_free[space] = 1

    edges = [*np.flatnonzero(np.diff(ordered, prepend=-1)).tolist(), len(ordered)]
    for begin, end in pairwise(edges):
        size = int(ordered[begin])
        while begin < end:
            space = has_free.find(1, size)
            per_bin = (space if space >= 0 else capacity) // size
            needed = -(-(end - begin) // per_bin)
            if space < 0:
                space, which = capacity, np.arange(num_bins, num_bins + needed)
                num_bins += needed
            else:
                which = np.concatenate(free[space])
                free[space], has_free[space] = [], 0
                put(space, which[needed:])
                which = which[:needed]
            items = np.repeat(which, per_bin)[: end - begin]
            bins[order[begin : begin + len(items)]] = items
            begin += len(items)
            in_last = len(items) - per_bin * (len(which) - 1)
            put(space - per_bin * size, which[:-1])
            put(space - in_last * size, which[-1:])
    return bins


def load_or_plan(
    tokens: TokenArray, length: int, *, store: str | None, store_hash: str, split: str
) -> PackingPlan:
    """The plan saved beside the store, or a new one, which is then saved there.

    Args:
      tokens: the split.
      length: columns of a row.
      store: the store's folder; None keeps the plan in memory only.
      store_hash, split: what the plan is of; with the length they make its file name.

    A plan that is damaged is made again; a store that cannot be written to costs the planning time
    at each start and a warning. Raises DataError when the split has no target.
    """
    key = hashlib.sha256(f"{PLAN_VERSION} {store_hash} {split} {length}".encode()).hexdigest()
    path = store and storage.join(store, "plans", f"{split}-{length}-{key[:16]}.npz")
    if path and storage.exists(path):
        plan = _read_plan(path, length)
        if plan is not None:
            return plan
        _log.warning("%s is damaged: the packing plan is made again", path)
    plan = plan_whole_documents(tokens.document_starts, length)
    if path:
        try:
            storage.write_bytes(path, _plan_bytes(plan))
        except StorageError as error:
            _log.warning("the packing plan is not kept for the next start: %s", error)
    return plan


def _plan_bytes(plan: PackingPlan) -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        row_offsets=plan.row_offsets,
        starts=plan.starts,
        lengths=plan.lengths,
        num_skipped=np.int64(plan.num_skipped),
        hash=np.frombuffer(bytes.fromhex(plan.hash), np.uint8),
    )
    return buffer.getvalue()


def _read_plan(path: str, length: int) -> PackingPlan | None:
    """The plan in a file, or None when it is not what was written."""
    try:
        with np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False) as file:
            plan = PackingPlan(
                length,
                file["row_offsets"],
                file["starts"],
                file["lengths"],
                int(file["num_skipped"]),
            )
            saved = file["hash"].tobytes().hex()
    except Exception:  # zip, npy and CRC errors have no common parent
        return None
    return plan if plan.hash == saved else None
