"""The state of a run as its display tells it: newest numbers, rate, time left, best evaluation.

In come records; out go short texts (the introduction, the parts of a progress line, the
conclusion) and the machine-readable result. Knows nothing of terminals.
"""

from __future__ import annotations

import math
import os
import time
import unicodedata
from collections import deque
from collections.abc import Callable
from typing import Any

from maxlm.train import quantities as q

RATE_WINDOW_SECONDS = 60.0


class Progress:
    """What is known of the run in `folder` so far."""

    def __init__(self, folder: str):
        self.folder = folder
        self.name = os.path.basename(folder.rstrip("/")) or folder
        self.total_steps = 0
        self.step = 0
        self.newest: dict[str, Any] = {}  # the last train record
        self.evals: dict[str, dict[str, Any]] = {}  # newest by set
        self.best: dict[str, dict[str, Any]] = {}  # lowest loss by set
        self.checkpoint_step: int | None = None
        self._start: dict[str, Any] = {}
        self._began = time.monotonic()
        self._recent: deque[tuple[float, int]] = deque()

    def start(self, record: dict[str, Any]) -> None:
        """Take the `start` record."""
        self._start = record
        self.total_steps = int(record.get("total_steps") or 0)
        self.step = int(record.get("resumed_from") or 0)

    def train(self, record: dict[str, Any]) -> int:
        """Take a `train` record; returns how many steps were skipped since the last one."""
        before = self.newest.get("skipped_steps") or 0
        now = time.monotonic()
        self.newest, self.step = record, int(record["step"])
        self._recent.append((now, self.step))
        while len(self._recent) > 2 and now - self._recent[1][0] > RATE_WINDOW_SECONDS:
            self._recent.popleft()
        return max(0, int(record.get("skipped_steps") or 0) - int(before))

    def eval(self, record: dict[str, Any]) -> bool:
        """Take an `eval` record; returns whether it is the best of several on its set."""
        name, loss = record["set"], record.get("loss")
        self.evals[name] = record
        best = self.best.get(name)
        if loss is None or not math.isfinite(loss):
            return False
        if best is None or loss < best["loss"]:
            self.best[name] = record
            return best is not None
        return False

    def checkpoint(self, record: dict[str, Any]) -> None:
        """Take a `checkpoint` record."""
        self.checkpoint_step = int(record["step"])

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since this process began."""
        return time.monotonic() - self._began

    @property
    def seconds_left(self) -> float | None:
        """Time left at the rate of the last minute; None before there is a rate."""
        if len(self._recent) < 2:
            return None
        (then, first), (latest, last) = self._recent[0], self._recent[-1]
        if last <= first or last >= self.total_steps:
            return None
        left = (self.total_steps - last) * (latest - then) / (last - first)
        return max(0.0, left - (time.monotonic() - latest))

    def introduction(self) -> list[str]:
        """What runs, in a few aligned lines."""
        record = self._start
        model = (record.get("config") or {}).get("model") or {}
        attention = record.get("attention") or {}
        spans = len(set(attention.values()))
        rows = [
            ("model", _model_line(model, record)),
            ("data", _data_line(record.get("data") or {})),
            ("devices", _devices_line(record)),
            *(
                ("attention", choice if spans == 1 else f"{span}: {choice}")
                for span, choice in attention.items()
            ),
            ("pipeline", _pipeline_line(record.get("pipeline"))),
            ("training", _training_line(record)),
            ("saved in", self.folder),
            *(
                ("derived", f"{d['key']} = {d['value']} ({d['rule']})")
                for d in record.get("derived") or []
            ),
        ]
        resumed = record.get("resumed_from")
        state = "a new run" if resumed is None else f"resumed from step {resumed:,}"
        return [f"maxlm · {self.name} · {state}", *(f"  {k:<9} {v}" for k, v in rows if v)]

    def line(self) -> list[str]:
        """The parts of one line of progress."""
        return [f"step {self.step:,}/{self.total_steps:,}", *self.learning(), *self.speed()[:3]] + (
            [f"{q.clock(self.seconds_left)} left"] if self.seconds_left is not None else []
        )

    def learning(self) -> list[str]:
        """How well it learns: loss, bits per byte, learning rate, gradient norm, skipped steps."""
        n = self.newest
        texts = _filled(
            n,
            ("loss", "loss {}", q.number),
            ("bits_per_byte", "{} bits/byte", q.number),
            ("learning_rate", "lr {}", lambda value: q.number(value, 3)),
            ("grad_norm", "grad {}", lambda value: q.number(value, 3)),
        )
        return texts + ([f"{n['skipped_steps']} skipped"] if n.get("skipped_steps") else [])

    def speed(self) -> list[str]:
        """How fast it goes and what it uses: tokens/s, step time, MFU, memory, data wait."""
        n = self.newest
        texts = _filled(
            n,
            ("tokens_per_second", "{} tokens/s", q.count),
            ("mfu", "MFU {}", q.percent),
            ("step_seconds", "{}/step", q.duration),
            ("device_memory_bytes", "device {}", q.size),
        )
        spent = [n.get(f"{part}_seconds") or 0.0 for part in ("compute", "data_wait", "save_wait")]
        if sum(spent) > 0 and spent[1] / sum(spent) >= 0.01:
            texts.append(f"waits for data {q.percent(spent[1] / sum(spent))}")
        return texts

    def validation(self) -> list[str]:
        """The newest evaluation of each set, and its best when that was another."""
        texts = []
        for name, record in self.evals.items():
            text = f"{name} {q.number(record.get('loss'))} at step {record['step']:,}"
            best = self.best.get(name, record)
            if best is not record:
                text += f" (best {q.number(best['loss'])} at {best['step']:,})"
            texts.append(text)
        return texts

    def conclusion(self, end: dict[str, Any]) -> list[str]:
        """How the run ended."""
        seconds = q.duration(end.get("seconds") or self.elapsed_seconds)
        if end["reason"] == "finished":
            head = f"finished {self.total_steps:,} steps in {seconds}"
        else:
            head = (
                f"{end['reason']} at step {end['step']:,} of {self.total_steps:,} after {seconds}"
            )
        facts = self.learning()[:2] + self.validation()
        lines = [f"{head}: {', '.join(facts)}" if facts else head]
        if end["reason"] in ("interrupted", "terminated"):
            lines.append("the same command again continues it")
        return lines

    def result(self, end: dict[str, Any]) -> dict[str, Any]:
        """The run's outcome as one flat record."""
        n = self.newest
        return {
            "run": self.folder,
            "reason": end["reason"],
            "step": end["step"],
            "total_steps": self.total_steps,
            "seconds": end.get("seconds") or self.elapsed_seconds,
            "parameters": self._start.get("parameters"),
            **{
                k: n.get(k) for k in ("tokens", "loss", "bits_per_byte", "tokens_per_second", "mfu")
            },
            "eval": {
                name: {"loss": r.get("loss"), "bits_per_byte": r.get("bits_per_byte")}
                for name, r in self.evals.items()
            },
            "best_eval_loss": {name: record["loss"] for name, record in self.best.items()},
            "resumed_from": self._start.get("resumed_from"),
        }


def printable(text: str) -> str:
    """`text` without characters that would steer the terminal (a model may write any)."""
    return "".join(
        c if c == "\t" or unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") else "�"
        for c in text
    )


def _filled(record: dict[str, Any], *parts: tuple[str, str, Callable[[float], str]]) -> list[str]:
    """Texts of those `(field, form, how to show)` whose field is known."""
    return [form.format(show(record[k])) for k, form, show in parts if record.get(k) is not None]


def _model_line(model: dict[str, Any], record: dict[str, Any]) -> str:
    parts = []
    if model.get("num_layers"):
        parts.append(f"{model['num_layers']} layers × {model.get('embed_dim')} wide")
    if model.get("num_heads"):
        groups = model.get("num_kv_heads")
        grouped = f" ({groups} key-value)" if groups not in (None, model["num_heads"]) else ""
        parts.append(f"{model['num_heads']} heads{grouped}")
    if model.get("vocab_size"):
        parts.append(f"vocabulary {model['vocab_size']:,}")
    if record.get("parameters"):
        parts.append(f"{q.count(record['parameters'])} parameters")
    return ", ".join(parts)


def _data_line(data: dict[str, Any]) -> str:
    sources = data.get("sources") or data.get("mixture") or {}
    parts = []
    for name, source in sources.items() if isinstance(sources, dict) else []:
        tokens = source.get("tokens") if isinstance(source, dict) else None
        text = f"{name} {q.count(tokens)} tokens" if tokens is not None else str(name)
        epochs = source.get("epochs") if isinstance(source, dict) else None
        parts.append(f"{text} × {q.number(epochs, 3)} epochs" if epochs is not None else text)
    tokenizer = data.get("tokenizer")
    if isinstance(tokenizer, dict) and tokenizer.get("kind"):
        parts.append(f"{tokenizer['kind']} tokenizer")
    return ", ".join(parts)


def _devices_line(record: dict[str, Any]) -> str:
    if not record.get("devices"):
        return ""
    devices = record["devices"]
    number = len(devices) if isinstance(devices, (list, tuple)) else devices
    text = f"{number} × {record.get('device_kind') or 'device'}"
    mesh = record.get("mesh") or {}
    if isinstance(mesh, dict):
        wide = [f"{axis} {size}" for axis, size in mesh.items() if size != 1]
        text += f", mesh {' × '.join(wide)}" if wide else ""
    if (record.get("processes") or 1) > 1:
        text += f", {record['processes']} processes"
    return text


def _pipeline_line(pipeline: dict[str, Any] | None) -> str:
    if not pipeline:
        return ""
    stages, rounds, micro = (pipeline[k] for k in ("stages", "rounds", "microbatches"))
    return (
        f"{stages} stages × {rounds} round{'s' * (rounds > 1)}, {micro} microbatches: a bubble of "
        f"{stages - 1} / ({micro} × {rounds} + {stages - 1}) = {q.percent(pipeline['bubble'])}"
    )


def _training_line(record: dict[str, Any]) -> str:
    steps, tokens = record.get("total_steps"), record.get("tokens_per_step")
    if not steps or not tokens:
        return ""
    total = record.get("total_tokens") or steps * tokens
    text = f"{steps:,} steps × {tokens:,} tokens = {q.count(total)} tokens"
    if total != steps * tokens:  # phases of several batch sizes or lengths
        text = f"{steps:,} steps, {q.count(total)} tokens"
    per_token = record.get("flops_per_token")
    return text + (f", {total * per_token:.3g} FLOPs" if per_token else "")
