"""The loader: which tokens the examples of a run hold, and their batches, from any cursor.

In come the data config, its token stores and the timeline of phases; out go batches. The example at
index i of the run is a pure function of (the stores' manifests, seed, phases, i): host count, mesh,
restarts, threads and batch size do not enter, so the cursor is all that a checkpoint saves.

    example index ─ timeline ─▶ phase, index within it ─ mixture ─▶ source, ordinal within it
                  ─ order ─▶ row of the source ─ cut or whole ─▶ spans ─ assemble ─▶ arrays

A source's ordinal runs on across phases, so that its epochs stay whole whatever happens to weights
and batch sizes. Where a phase reads a source in another length than the phase before that read it,
the source's rows change: its epoch under way ends there, and the next epoch begins with rows of the
new length. (A shuffled half-read epoch has no whole stretches of the longer length left in it.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from maxlm.batch import Batch
from maxlm.config.schema import DataConfig, Duration, Packing
from maxlm.data.mixture import Mixture
from maxlm.data.order import ORDER_VERSION, EpochOrder
from maxlm.data.packing import WholeRows, load_or_plan
from maxlm.data.phases import Phase, Timeline, build_timeline
from maxlm.data.prefetch import BatchIterator
from maxlm.data.rows import RowSource, TokenArray, assemble, padding_batch
from maxlm.data.windows import CutRows, Rows, row_numbers
from maxlm.errors import ConfigError, DataError, did_you_mean

# Examples located at once and remembered, because small batches would spend more time on calls
# that locate a few examples than on reading them (measured: 100 µs for 8 examples, 250 for 1024).
_CHUNK = 1024


@dataclass(frozen=True)
class Source:
    """A split of tokens in the mixture, with what names it in errors, hashes and plans."""

    tokens: TokenArray
    hash: str = ""  # of the store's manifest
    split: str = "train"
    store: str | None = None  # folder; None for tokens in memory


@dataclass(frozen=True)
class _Lane:
    """One source within one phase."""

    name: str
    tokens: TokenArray
    rows: RowSource
    order: EpochOrder
    first_ordinal: int  # the source's ordinal at the start of the phase


class Loader:
    """Batches of a run by cursor. `open_sources.open_loader` makes one from a config."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        data: DataConfig,
        *,
        batch_size: int,
        total: Duration | None,
    ):
        """Lay out a run over `sources` (by the names in `data.mixture`).

        Args:
          sources: opened token splits by name.
          data: lengths, phases, packing, seed, threads.
          batch_size: examples per step where a phase names none.
          total: duration of the run, as in `build_timeline`.

        Raises ConfigError for phases that cannot be laid out, DataError for a source that is too
        short.
        """
        self.data = data
        self.sources = dict(sources)
        self._rows: dict[tuple[str, int], RowSource] = {}
        self.timeline: Timeline = build_timeline(
            data, batch_size=batch_size, total=total, rows_per_epoch=self._rows_per_epoch
        )
        self._mixtures: list[Mixture] = []
        self._lanes: list[list[_Lane]] = []
        self._lay_out()
        self._chunk = lru_cache(maxsize=8)(self._locate_chunk)

    def batch(self, cursor: int, batch_size: int | None = None, rows: Rows = None) -> Batch:
        """The batch of examples `[cursor, cursor + batch_size)`, arrays `[len(rows), T]`.

        Args:
          cursor: examples of the run before this batch.
          batch_size: examples in the global batch; unset: the phase's.
          rows: rows of the global batch to make (slice or indices); unset: all.

        Raises DataError when the examples are not all of one phase of the run.
        """
        phase = self.timeline.phase_at(cursor)
        batch_size = phase.batch_size if batch_size is None else batch_size
        if batch_size < 1 or cursor + batch_size > phase.end_cursor:
            raise DataError(
                f"a batch of {batch_size} examples at cursor {cursor} does not fit phase "
                f"{phase.index}, which has examples {phase.start_cursor} to {phase.end_cursor - 1}"
            )
        indices = cursor - phase.start_cursor + row_numbers(rows, batch_size)
        numbers, row_indices = self._locate(phase.index, indices)
        lanes = self._lanes[phase.index]
        if len(lanes) == 1 and len(indices):
            return _read(lanes[0], row_indices)
        batch = padding_batch(len(indices), phase.length)
        for number, lane in enumerate(lanes):
            where = np.flatnonzero(numbers == number)
            if len(where):
                for whole, part in zip(batch, _read(lane, row_indices[where]), strict=True):
                    whole[where] = part
        return batch

    def iterate(
        self,
        cursor: int = 0,
        rows: Rows | Callable[[int], Rows] = None,
        *,
        stop_step: int | None = None,
    ) -> BatchIterator:
        """Batches from `cursor` (where a step must start) to the end of the run, read ahead.

        `data.workers` Grain threads keep at most `data.prefetch` batches ready beyond the one handed
        out; with 0 workers each batch is made when asked for. Close the iterator, or use it in a
        `with`. `rows` is as in `batch`; a function from the batch size to rows serves phases that
        differ in it. Raises DataError when no step starts at `cursor`.
        """
        first = self.timeline.at_cursor(cursor).step
        stop = self.timeline.total_steps if stop_step is None else stop_step

        def make(step: int) -> Batch:
            plan = self.timeline.at_step(step)
            mine = rows(plan.batch_size) if callable(rows) else rows
            return self.batch(plan.cursor, plan.batch_size, mine)

        return BatchIterator(
            make, range(first, stop), workers=self.data.workers, prefetch=self.data.prefetch
        )

    @property
    def hash(self) -> str:
        """SHA-256 of what the order of examples rests on besides the phases.

        Equal hashes and phases give equal examples; a checkpoint keeps it to refuse other data.
        """
        return self.hash_of(self.sources)

    def hash_of(self, names: Iterable[str]) -> str:
        """The hash that a run over these of the sources has: the same seed and packing."""
        parts = [f"{ORDER_VERSION} {self.data.seed} {self.data.packing}"]
        sources = ((name, self.sources[name]) for name in sorted(names))
        parts += [f"{n} {s.hash} {s.split}" for n, s in sources]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def epochs(self, cursor: int) -> dict[str, float]:
        """How often each source has been read through when `cursor` examples are consumed."""
        phases = self.timeline.phases
        done = phases[-1] if cursor >= phases[-1].end_cursor else self.timeline.phase_at(cursor)
        epochs = dict.fromkeys(self.sources, 0.0)
        for phase in phases[: done.index + 1]:
            count = min(cursor, phase.end_cursor) - phase.start_cursor
            counts = self._mixtures[phase.index].counts(count)
            for lane in self._lanes[phase.index]:
                ordinal = lane.first_ordinal + counts[lane.name]
                epochs[lane.name] = ordinal / lane.rows.num_rows
        return epochs

    def summary(self) -> dict[str, Any]:
        """What is read, for the log and the run's page: plain numbers and strings."""
        at_end = self.epochs(self.timeline.total_examples)
        return {
            "hash": self.hash,
            "packing": str(self.data.packing),
            "seed": self.data.seed,
            "total_examples": self.timeline.total_examples,
            "total_tokens": self.timeline.total_tokens,
            "sources": {
                name: {
                    "store": source.store,
                    "split": source.split,
                    "hash": source.hash,
                    "tokens": source.tokens.num_tokens,
                    "documents": source.tokens.num_documents,
                    "epochs": round(at_end[name], 4),
                }
                for name, source in self.sources.items()
            },
            "phases": [
                {
                    "steps": phase.num_steps,
                    "length": phase.length,
                    "batch_size": phase.batch_size,
                    "shares": self._mixtures[phase.index].shares,
                }
                for phase in self.timeline.phases
            ],
        }

    def _lay_out(self) -> None:
        """Mixtures and lanes of every phase, each source's ordinal carried from phase to phase."""
        reached: dict[str, tuple[int, int]] = {}  # name → length last read in, next ordinal
        for phase in self.timeline.phases:
            mixture = Mixture(phase.weights)
            lanes = [self._lane(name, phase, reached.get(name)) for name in mixture.names]
            counts = mixture.counts(phase.num_examples)
            for lane in lanes:
                reached[lane.name] = (phase.length, lane.first_ordinal + counts[lane.name])
            self._mixtures.append(mixture)
            self._lanes.append(lanes)

    def _lane(self, name: str, phase: Phase, reached: tuple[int, int] | None) -> _Lane:
        """A source in a phase, going on from what it has reached before."""
        rows = self._rows_of(name, phase.length)
        length_before, ordinal = reached or (phase.length, 0)
        if length_before != phase.length:
            epochs_begun = -(-ordinal // self._rows_of(name, length_before).num_rows)
            ordinal = epochs_begun * rows.num_rows
        order = EpochOrder(rows.num_rows, self.data.seed, name)
        return _Lane(name, self.sources[name].tokens, rows, order, ordinal)

    def _locate(self, phase: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lane number and row index of examples (int64 `[n]`, counted within the phase)."""
        first, last = (indices[0], indices[-1]) if len(indices) else (0, 0)
        if abs(last - first) >= _CHUNK or not (indices // _CHUNK == first // _CHUNK).all():
            return self._locate_now(phase, indices)
        numbers, row_indices = self._chunk(phase, int(first // _CHUNK))
        within = indices % _CHUNK
        return numbers[within], row_indices[within]

    def _locate_chunk(self, phase: int, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        return self._locate_now(phase, np.arange(chunk * _CHUNK, (chunk + 1) * _CHUNK))

    def _locate_now(self, phase: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        numbers, ordinals = self._mixtures[phase].split(indices)
        row_indices = np.empty(len(indices), np.int64)
        for number, lane in enumerate(self._lanes[phase]):
            where = numbers == number
            row_indices[where] = lane.order(lane.first_ordinal + ordinals[where])
        return numbers, row_indices

    def _rows_of(self, name: str, length: int) -> RowSource:
        """A source laid out in rows of `length`, made once."""
        if (name, length) not in self._rows:
            if name not in self.sources:
                raise ConfigError(
                    f"no tokens were given for the source '{name}'{did_you_mean(name, self.sources)}"
                )
            self._rows[name, length] = _lay_rows(name, self.sources[name], length, self.data)
        return self._rows[name, length]

    def _rows_per_epoch(self, weights: Mapping[str, float], length: int) -> int:
        return sum(self._rows_of(n, length).num_rows for n, w in weights.items() if w > 0)


def _lay_rows(name: str, source: Source, length: int, data: DataConfig) -> RowSource:
    """Rows of one source. Raises DataError when it cannot fill one."""
    tokens = source.tokens
    where = f"source '{name}' ({source.store or 'in memory'}, split '{source.split}')"
    if tokens.num_tokens < 2:
        raise DataError(f"{where} is empty: {tokens.num_tokens} tokens; drop it from data.mixture")
    if data.packing == Packing.WHOLE:
        try:
            plan = load_or_plan(
                tokens,
                length,
                store=source.store,
                store_hash=source.hash,
                split=source.split,
            )
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        return WholeRows(plan)
    if tokens.num_tokens < length + 1:
        raise DataError(
            f"{where} has {tokens.num_tokens:,} tokens, less than one window of length {length} "
            f"and its last target ({length + 1}): use a length of at most {tokens.num_tokens - 1}, "
            "or more text"
        )
    return CutRows(tokens, length)


def _read(lane: _Lane, indices: np.ndarray) -> Batch:
    """Rows of one source by their indices, int64 `[n]`."""
    return assemble(lane.tokens, lane.rows.spans(indices), len(indices), lane.rows.length)
