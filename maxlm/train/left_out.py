"""What a run has done beside its newest step, told by the records that it wrote.

In come a run folder and a step; out goes what was evaluated and sampled at it, and whether the run
ended whole. A checkpoint is saved before the evaluation of its step, so a kill, a signal or an
error may leave that out; nothing but `metrics.jsonl` is needed to know.
"""

from __future__ import annotations

from typing import Any

from maxlm import storage
from maxlm.train.sinks import METRICS_FILE, REPEATED_KINDS, begins_after, iterate_records

# What tells records of one step apart: their kind, and the set or prompt.
Identity = tuple[str, str]


def identity(record: dict[str, Any]) -> Identity:
    """The identity of a record among those of its step."""
    return record["kind"], str(record.get("set", record.get("prompt", "")))


def made_at(run: str, step: int) -> set[Identity]:
    """Identities of the records that `RUN/metrics.jsonl` has of a step; lost work does not count.

    Raises DataError when a line in the middle is no record.
    """
    made: set[Identity] = set()
    for record in _records(run):
        if record["kind"] == "start" and begins_after(record) < step:
            made = set()
        elif record["kind"] in REPEATED_KINDS and record["step"] == step:
            made.add(identity(record))
    return made


def ended_whole(run: str) -> bool:
    """Whether the newest record says that the run finished. Raises DataError like `made_at`."""
    newest: dict[str, Any] = {}
    for record in _records(run):
        newest = record
    return newest.get("kind") == "end" and newest.get("reason") == "finished"


def _records(run: str) -> Any:
    return iterate_records(run) if storage.exists(storage.join(run, METRICS_FILE)) else ()
