"""What there is to say about a run in numbers and sentences.

In comes a `History`; out come its final numbers (one flat dict per run, for tiles and tables), the
time split, and findings: sentences about what deserves a look.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from maxlm.evaluate.report.history import History, Session
from maxlm.train import quantities as q
from maxlm.train.sinks import begins_after

TAIL_FRACTION = 0.02  # "final" training loss: the mean over the last 2% of the records
SPLIT = ("compute", "data_wait", "save_wait", "eval", "start_up")


def final_numbers(history: History) -> dict[str, Any]:
    """Where the run stands. Unknown values are None."""
    columns = history.columns
    return {
        "step": history.step,
        "total_steps": history.start.get("total_steps"),
        "tokens": _last(columns.get("tokens")),
        "loss": tail_mean(columns.get("loss")),
        "bits_per_byte": tail_mean(columns.get("bits_per_byte")),
        "parameters": history.start.get("parameters"),
        "wall_seconds": history.wall_seconds,
        "tokens_per_second": _median(columns.get("tokens_per_second")),
        "mfu": _median(columns.get("mfu")),
        "device_memory_bytes": _max(columns.get("device_memory_bytes")),
        "skipped_steps": int(_last(columns.get("skipped_steps")) or 0),
        "resumes": sum(s.start.get("resumed_from") is not None for s in history.sessions),
        "lost_steps": history.lost_steps,
        "evals": {name: best_and_last(history, name) for name in eval_sets(history)},
    }


def eval_sets(history: History) -> list[str]:
    """Names of the evaluation sets, as they came."""
    return list(dict.fromkeys(str(e.get("set", "eval")) for e in history.evals))


def best_and_last(history: History, name: str) -> dict[str, Any]:
    """`{"best": record or None, "last": record}` of one set; best is the lowest finite loss."""
    records = [e for e in history.evals if str(e.get("set", "eval")) == name]
    finite = [r for r in records if r.get("loss") is not None and np.isfinite(r["loss"])]
    best = min(finite, key=lambda r: r["loss"], default=None)
    return {"best": best, "last": records[-1]}


def time_split(history: History) -> dict[str, float]:
    """Seconds by what they went into, over the steps that count.

    `start_up` is what sessions needed besides stepping: loading and restoring before the first
    record, and compiling, which the first record's compute time contains: what it exceeds the
    median step by.
    """
    columns = history.columns
    split = {
        part: float(np.nansum(columns.get(f"{part}_seconds", np.zeros(1)))) for part in SPLIT[:-1]
    }
    split["start_up"] = 0.0
    compute = columns.get("compute_seconds")
    typical = np.nan
    if compute is not None and compute.size > 2:
        typical = float(np.nanmedian(compute[1:] / np.maximum(np.diff(columns["step"]), 1)))
    for session in history.sessions:
        first = session.first_train
        if first is None:
            continue
        stepping = sum(first.get(f"{part}_seconds") or 0.0 for part in SPLIT[:-1])
        split["start_up"] += max(0.0, first["time"] - session.start["time"] - stepping)
        steps = first["step"] - begins_after(session.start)
        excess = (first.get("compute_seconds") or 0.0) - typical * steps
        if excess > 1.0 and _counts(history, session, first["step"]):
            split["start_up"] += excess
            split["compute"] -= excess
    return split


def _counts(history: History, session: Session, step: int) -> bool:
    """Whether no later session resumed from before `step` of `session`."""
    later = history.sessions[history.sessions.index(session) + 1 :]
    return all(begins_after(s.start) >= step for s in later)


def verdict(history: History, now: float | None = None) -> str:
    """One sentence: how far it came, what it reached."""
    numbers = final_numbers(history)
    status = history.status(now)
    how = {
        "finished": "Finished",
        "interrupted": "Interrupted, can be continued",
        "terminated": "Terminated, can be continued",
        "failed": "Failed",
        "running": "Running",
        "stopped": "Stopped without an end (killed?), can be continued",
    }.get(status, status.capitalize())
    total = numbers["total_steps"]
    steps = f"{numbers['step']:,}" + (f" of {total:,}" if total else "") + " steps"
    parts = [
        f"{steps}, {q.count(numbers['tokens'])} tokens in {q.duration(numbers['wall_seconds'])}"
    ]
    if numbers["loss"] is not None:
        parts.append(f"training loss {q.number(numbers['loss'])}")
    for name, found in numbers["evals"].items():
        if found["best"] is not None:
            best = found["best"]
            parts.append(f"best loss on {name} {q.number(best['loss'])} at step {best['step']:,}")
    return f"{how}: {'; '.join(parts)}."


def findings(history: History) -> list[str]:
    """Sentences about what deserves a look; empty when nothing does."""
    numbers = final_numbers(history)
    found = []
    if history.bad_losses:
        found.append(
            f"The loss was not finite in {_times(len(history.bad_losses), 'record')}, first at step "
            f"{history.bad_losses[0]:,}."
        )
    if numbers["skipped_steps"]:
        found.append(
            f"{_times(numbers['skipped_steps'], 'step')} skipped, because gradients were not finite."
        )
    for name, both in numbers["evals"].items():
        best, last = both["best"], both["last"].get("loss")
        if best is not None and last is not None and last > best["loss"] * 1.01:
            found.append(
                f"The loss on {name} was lowest at step {best['step']:,} "
                f"({q.number(best['loss'])}) and has risen to {q.number(last)} since."
            )
    split = time_split(history)
    total = sum(split.values())
    for part, limit, text in (
        ("data_wait", 0.05, "waiting for data"),
        ("save_wait", 0.05, "waiting for checkpoints"),
        ("eval", 0.2, "in evaluations"),
        ("start_up", 0.2, "starting and compiling"),
    ):
        if total > 0 and split[part] / total > limit:
            found.append(f"{q.percent(split[part] / total)} of the time was spent {text}.")
    if history.lost_steps:
        found.append(
            f"Kills lost {_times(history.lost_steps, 'step')} ({q.duration(history.lost_seconds)}) "
            "since the checkpoint before; they were done again."
        )
    return found


def tail_mean(column: np.ndarray | None) -> float | None:
    """Mean over the last 2% of the records that are known, at least one."""
    if column is None:
        return None
    known = column[np.isfinite(column)]
    if not known.size:
        return None
    return float(known[-max(1, int(known.size * TAIL_FRACTION)) :].mean())


def _last(column: np.ndarray | None) -> float | None:
    known = column[np.isfinite(column)] if column is not None else np.zeros(0)
    return float(known[-1]) if known.size else None


def _median(column: np.ndarray | None) -> float | None:
    known = column[np.isfinite(column)] if column is not None else np.zeros(0)
    return float(np.median(known)) if known.size else None


def _max(column: np.ndarray | None) -> float | None:
    known = column[np.isfinite(column)] if column is not None else np.zeros(0)
    return float(known.max()) if known.size else None


def _times(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
