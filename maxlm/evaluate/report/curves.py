"""The numbers that the page's script draws: one JSON-ready dict per run, short whatever the run.

In comes a `History`; out come plain lists rounded to what a screen can show, None where nothing is
known.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from maxlm.evaluate.report.downsample import add_up, shorten, thin
from maxlm.evaluate.report.facts import SPLIT, eval_sets, time_split
from maxlm.evaluate.report.history import History, tokens_at

POINTS = 1000  # per curve: as many as a wide screen has pixels for
EVALS = 1000  # per set
SAMPLE_BYTES = 400_000  # all samples of a run
KNOWN = (
    "loss",
    "bits_per_byte",
    "learning_rate",
    "grad_norm",
    "param_norm",
    "tokens_per_second",
    "mfu",
    "step_seconds",
    "device_memory_bytes",
    "host_memory_bytes",
)
# Shown otherwise, or said by another curve.
NOT_CURVES = frozenset(
    {"step", "tokens", "seconds", "time", "skipped_steps", "elapsed_seconds", "tflops_per_device"}
    | {"tokens_per_second_per_device"}
    | {f"{part}_seconds" for part in SPLIT}
)


def run_data(history: History, points: int = POINTS) -> dict[str, Any]:
    """Everything the script draws of one run."""
    columns = history.columns
    curves = {}
    for name, column in columns.items():
        if name in NOT_CURVES or not np.isfinite(column).any():
            continue
        curve = shorten(column, points)
        curves[name] = {"mean": _listed(curve.mean)}
        if curve.low is not None and curve.high is not None:
            curves[name] |= {"low": _listed(curve.low), "high": _listed(curve.high)}
    split = {
        part: _listed(add_up(columns[f"{part}_seconds"], points))
        for part in SPLIT
        if f"{part}_seconds" in columns
    }
    return {
        "name": history.name,
        "x": {x: _listed(shorten(columns[x], points).mean) for x in ("step", "tokens", "seconds")},
        "curves": curves,
        "split": split,
        "split_totals": {part: round(total, 3) for part, total in time_split(history).items()},
        "evals": {name: _evals(history, name) for name in eval_sets(history)},
        "samples": _samples(history),
        "resumes": _resumes(history),
        "skips": _skips(history),
    }


def more_fields(histories: list[History]) -> list[str]:
    """Numeric fields beyond those that the page knows: a user's own metrics."""
    return sorted(
        {
            name
            for history in histories
            for name, column in history.columns.items()
            if name not in NOT_CURVES and name not in KNOWN and np.isfinite(column).any()
        }
    )


def _evals(history: History, name: str) -> dict[str, list[float | None]]:
    records = thin([e for e in history.evals if str(e.get("set", "eval")) == name], EVALS)
    fields = {
        "step": "step",
        "tokens": "tokens_at",
        "seconds": "seconds_at",
        "loss": "loss",
        "bits_per_byte": "bits_per_byte",
    }
    return {
        to: _listed(np.array([_number(r.get(field)) for r in records]))
        for to, field in fields.items()
    }


def _samples(history: History) -> list[dict[str, Any]]:
    samples = [
        {"step": s["step"], "prompt": str(s.get("prompt", "")), "text": str(s.get("text", ""))}
        for s in history.samples
    ]
    size = sum(len(s["prompt"].encode()) + len(s["text"].encode()) for s in samples)
    if size <= SAMPLE_BYTES:
        return samples
    prompts = list(dict.fromkeys(s["prompt"] for s in samples))
    kept = []
    for prompt in prompts:
        own = [s for s in samples if s["prompt"] == prompt]
        kept += thin(own, max(2, int(len(own) * SAMPLE_BYTES / size)))
    return sorted(kept, key=lambda s: s["step"])


def _resumes(history: History) -> list[dict[str, float]]:
    return [
        {"step": step, "tokens": _tokens_at(history, step), "seconds": round(s.offset, 1)}
        for s in history.sessions
        if (step := s.start.get("resumed_from")) is not None
    ]


def _skips(history: History, limit: int = 200) -> list[dict[str, float]]:
    counter = history.columns.get("skipped_steps")
    if counter is None:
        return []
    grown = np.diff(np.nan_to_num(counter), prepend=0.0)
    rows = thin(list(np.flatnonzero(grown > 0)), limit)
    x = history.columns
    return [
        {
            "step": int(x["step"][row]),
            "tokens": float(x["tokens"][row]),
            "seconds": round(float(x["seconds"][row]), 1),
            "count": int(grown[row]),
        }
        for row in rows
    ]


def _tokens_at(history: History, step: int) -> float:
    return tokens_at(step, history.columns, history.start.get("tokens_per_step") or 1)


def _number(value: Any) -> float:
    return (
        float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else np.nan
    )


def _listed(column: np.ndarray) -> list[float | None]:
    """Six significant digits; whole numbers without a fraction; None for what is not finite."""
    found: list[float | None] = []
    for value in column.tolist():
        if not np.isfinite(value):
            found.append(None)
        elif value == int(value) and abs(value) < 2**53:
            found.append(int(value))
        else:
            found.append(float(f"{value:.6g}"))
    return found
