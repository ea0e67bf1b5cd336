"""Reads a run's `metrics.jsonl` into columns, in one pass, as a run of a million records needs it.

In comes a run folder, local or remote, finished or still running; out comes a `History`: numbers
by field, evaluations, samples, checkpoints, and the sessions (one per process start). What a kill
lost and a resume did again is counted once, and how much that was is kept too.
"""

from __future__ import annotations

import os
import time
from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maxlm import storage
from maxlm.errors import DataError
from maxlm.train.sinks import METRICS_FILE, begins_after, iterate_records

# A run whose newest record is older than this, and that has no end, is not running any more.
SILENT_SECONDS = 600.0


@dataclass
class Session:
    """One process that worked on the run.

    `offset` is the training time before it, of work that counts; `reached` the last step it wrote.
    """

    start: dict[str, Any]
    offset: float
    reached: int
    last_time: float
    first_train: dict[str, Any] | None = None
    end: dict[str, Any] | None = None


@dataclass
class History:
    """A run, read.

    Attributes:
        name: what the page calls the run: its folder's name, longer where two runs share one.
        columns: by field, one float64 per train record (NaN: unknown or not finite). `step`,
            `tokens` and `seconds` (training time without pauses and lost work) are the x-axes.
        evals, samples, checkpoints: records that count, with `seconds_at` (training time) and
            `tokens_at`.
        bad_losses: steps of train records whose loss was not finite.
        lost_steps, lost_seconds: work that a kill lost and a resume did again.
    """

    folder: str
    name: str
    sessions: list[Session]
    columns: dict[str, np.ndarray]
    evals: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    checkpoints: list[dict[str, Any]]
    bad_losses: list[int] = field(default_factory=list)
    lost_steps: int = 0
    lost_seconds: float = 0.0

    @property
    def start(self) -> dict[str, Any]:
        """The newest `start` record."""
        return self.sessions[-1].start

    @property
    def step(self) -> int:
        """The last step that counts."""
        steps = self.columns["step"]
        return int(steps[-1]) if steps.size else int(self.start.get("resumed_from") or 0)

    @property
    def wall_seconds(self) -> float:
        """Time spent by all sessions, lost work included, pauses between them not."""
        return sum(s.last_time - s.start["time"] for s in self.sessions)

    def status(self, now: float | None = None) -> str:
        """finished, interrupted, failed, running or stopped (no end record, and silent)."""
        last = self.sessions[-1]
        if last.end is not None:
            return str(last.end.get("reason", "finished"))
        silent = (time.time() if now is None else now) - last.last_time
        return "running" if silent < SILENT_SECONDS else "stopped"


def read_history(run: str) -> History:
    """Read a run's records.

    Raises:
        StorageError: there is no `metrics.jsonl`. DataError: it is damaged, or has no record yet.
    """
    collector = _Collector()
    for record in iterate_records(run):
        collector.take(record)
    if not collector.sessions:
        raise DataError(
            f"{storage.join(run, METRICS_FILE)}: no record yet; a run writes its first when it "
            "starts to train"
        )
    return collector.history(run)


class _Collector:
    """Columns that grow with every record and shrink at a resume."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []
        self._columns: dict[str, array[float]] = {n: array("d") for n in ("step", "seconds")}
        self._events: list[dict[str, Any]] = []
        self._bad: list[int] = []
        self._lost_steps = 0
        self._lost_seconds = 0.0

    def take(self, record: dict[str, Any]) -> None:
        kind = record["kind"]
        if kind == "start" or not self.sessions:
            self._begin(record)
        session = self.sessions[-1]
        session.last_time = max(session.last_time, record["time"])
        session.reached = max(session.reached, record["step"])
        seconds = session.offset + record["time"] - session.start["time"]
        if kind == "train":
            if session.first_train is None:
                session.first_train = record
            self._train(record, seconds)
        elif kind in ("eval", "sample", "checkpoint"):
            self._events.append({**record, "seconds_at": seconds})
        elif kind == "end":
            session.end = record

    def _begin(self, record: dict[str, Any]) -> None:
        if record["kind"] == "start":
            self._drop_after(begins_after(record))
        seconds = [e["seconds_at"] for e in self._events] + list(self._columns["seconds"][-1:])
        offset = max(seconds, default=0.0)
        start = record if record["kind"] == "start" else {"time": record["time"]}
        step = record["step"]
        self.sessions.append(Session(start, offset, step, record["time"]))

    def _drop_after(self, step: int) -> None:
        steps, seconds = self._columns["step"], self._columns["seconds"]
        kept = len(steps)
        while kept and steps[kept - 1] > step:
            kept -= 1
        if kept < len(steps):
            self._lost_steps += int(steps[-1]) - step
            self._lost_seconds += seconds[-1] - (seconds[kept - 1] if kept else 0.0)
            for column in self._columns.values():
                del column[kept:]
        self._events = [e for e in self._events if e["step"] <= step]
        self._bad = [s for s in self._bad if s <= step]

    def _train(self, record: dict[str, Any], seconds: float) -> None:
        columns = self._columns
        rows = len(columns["step"])
        record["seconds"] = seconds
        for name, value in record.items():
            if type(value) is not float and type(value) is not int:
                continue
            if name not in columns:
                columns[name] = array("d", [np.nan]) * rows
            columns[name].append(value)
        for column in columns.values():
            if len(column) == rows:  # this record does not know it
                column.append(np.nan)
        if not np.isfinite(record.get("loss") or 0.0):
            self._bad.append(record["step"])

    def history(self, folder: str) -> History:
        columns = {name: np.array(column) for name, column in self._columns.items()}
        for name, column in columns.items():
            if name not in ("step", "seconds"):
                column[~np.isfinite(column)] = np.nan
        per_step = next(
            (s.start["tokens_per_step"] for s in self.sessions if s.start.get("tokens_per_step")), 1
        )
        if "tokens" not in columns:
            columns["tokens"] = columns["step"] * per_step
        for event in self._events:
            event["tokens_at"] = tokens_at(event["step"], columns, per_step)
        kinds = {
            kind: [e for e in self._events if e["kind"] == kind]
            for kind in ("eval", "sample", "checkpoint")
        }
        return History(
            folder=folder,
            name=os.path.basename(folder.rstrip("/")) or folder,
            sessions=self.sessions,
            columns=columns,
            evals=kinds["eval"],
            samples=kinds["sample"],
            checkpoints=kinds["checkpoint"],
            bad_losses=self._bad,
            lost_steps=self._lost_steps,
            lost_seconds=self._lost_seconds,
        )


def tokens_at(step: float, columns: dict[str, np.ndarray], per_step: int) -> float:
    """Tokens seen at `step`, between the train records around it (steps may differ in size)."""
    if not columns["step"].size:
        return float(step * per_step)
    steps = np.concatenate([[0.0], columns["step"]])
    tokens = np.concatenate([[0.0], columns["tokens"]])
    known = np.isfinite(tokens)
    return float(np.interp(step, steps[known], tokens[known]))
