"""Where a run's numbers go: `metrics.jsonl`, TensorBoard, Weights & Biases; and how they come back.

In comes one flat record (a dict with `kind`, `step`, `time`) for each thing that happens: `start`,
`train`, `eval`, `sample`, `checkpoint`, `end`. Out go a JSON line, TensorBoard events, W&B logs.
`read_metrics(run)` returns the records of `metrics.jsonl` as the run counts them: what a kill lost
and a resume did again is there once.

JSON has no NaN or infinity: such a value is written as `null`, and named in the record's
`non_finite`, so that any JSON reader takes the file and `read_metrics` gives the value back.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import struct
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from maxlm import storage
from maxlm.errors import ConfigError, DataError, MaxLMError
from maxlm.train.append_log import UPLOAD_SECONDS, AppendLog

METRICS_FILE = "metrics.jsonl"
# Records that a resume from an earlier step makes again.
REPEATED_KINDS = frozenset({"train", "eval", "sample", "checkpoint"})


class Sink(Protocol):
    """Takes records, in the order of events."""

    def write(self, record: dict[str, Any]) -> None:
        """Take one record."""

    def flush(self) -> None:
        """Return when what was written so far is safe."""

    def close(self) -> None:
        """Flush and finish."""


class FanOut:
    """One sink that passes every record to several.

    A `checkpoint` record flushes them all: numbers up to a checkpoint are never made again, so
    they must be as safe as the checkpoint is.
    """

    def __init__(self, sinks: Iterable[Sink]):
        self.sinks = list(sinks)

    def write(self, record: dict[str, Any]) -> None:
        """Pass `record` on."""
        for sink in self.sinks:
            sink.write(record)
        if record["kind"] == "checkpoint":
            self.flush()

    def flush(self) -> None:
        """Flush every sink."""
        for sink in self.sinks:
            sink.flush()

    def close(self) -> None:
        """Close every sink, also when one of them fails; then raise the first failure."""
        failures = []
        for sink in self.sinks:
            try:
                sink.close()
            except Exception as failure:
                failures.append(failure)
        if failures:
            raise failures[0]


def open_sinks(run: str, *, tensorboard: bool = True, wandb_project: str | None = None) -> FanOut:
    """Open the sinks of a run folder that `logging` asks for.

    Raises ConfigError when W&B is asked for and not installed, StorageError when `run` cannot be
    written.
    """
    sinks: list[Sink] = []
    if wandb_project:  # first: it is the one that a wrong set-up refuses
        sinks.append(WandbSink(run, wandb_project))
    sinks.append(JsonlSink(run))
    if tensorboard:
        sinks.append(TensorBoardSink(run))
    return FanOut(sinks)


class JsonlSink:
    """Appends every record to `RUN/metrics.jsonl` as one line of valid JSON."""

    def __init__(self, run: str, upload_seconds: float = UPLOAD_SECONDS):
        self._log = AppendLog(storage.join(run, METRICS_FILE), upload_seconds)
        self._log.cut_torn_line()

    def write(self, record: dict[str, Any]) -> None:
        """Append one record. Raises StorageError (disk full), and then the file is as before."""
        self._log.append(encode_record(record))

    def flush(self) -> None:
        """Sync to disk, or rewrite the object."""
        self._log.flush()

    def close(self) -> None:
        """Flush and close."""
        self._log.close()


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """tensorboardX imports torch where it is installed, which takes 1.2 s, and can do without."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules["torch"]


class TensorBoardSink:
    """Writes TensorBoard event files under `RUN/tensorboard`.

    Scalars `train/…` and `eval/SET/…` by step, samples and the config as text. Each process start
    makes a file of its own; after a resume TensorBoard drops the points that are made again.
    """

    def __init__(self, run: str, upload_seconds: float = UPLOAD_SECONDS):
        with _without_torch():
            from tensorboardX import summary
            from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._summary, self._text = (
            event_pb2.Event,
            summary_pb2.Summary,
            summary.text,
        )
        self._session = event_pb2.SessionLog
        unique = f"{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        path = storage.join(run, "tensorboard", f"events.out.tfevents.{unique}")
        self._log = AppendLog(path, upload_seconds)
        self._append(self._event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, record: dict[str, Any]) -> None:
        """Write the record's numbers (or text) as one event."""
        kind, where = record["kind"], {"step": record["step"], "wall_time": record["time"]}
        if kind == "start":
            purge = {**where, "step": begins_after(record) + 1}
            session = self._session(status=self._session.START)
            self._append(self._event(session_log=session, **purge))
            self._append_text("config", json.dumps(plain(record.get("config")), indent=2), where)
        elif kind == "sample":
            text = f"{record['prompt']}⟩{record['text']}"
            self._append_text(f"sample/{record['prompt'][:40].strip() or 'empty'}", text, where)
        elif kind in ("train", "eval"):
            prefix = f"eval/{record['set']}" if kind == "eval" else "train"
            values = [
                self._summary.Value(tag=f"{prefix}/{name}", simple_value=value)
                for name, value in numbers(record).items()
            ]
            self._append(self._event(summary=self._summary(value=values), **where))

    def flush(self) -> None:
        """Sync to disk, or rewrite the object."""
        self._log.flush()

    def close(self) -> None:
        """Flush and close."""
        self._log.close()

    def _append_text(self, tag: str, text: str, where: dict[str, Any]) -> None:
        indented = "\n".join(f"    {line}" for line in text.splitlines())  # Markdown: as it is
        self._append(self._event(summary=self._text(tag, indented), **where))

    def _append(self, event: Any) -> None:
        # One framed record: length, its checksum, the event, its checksum (the TFRecord format).
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        self._log.append(length + _masked_crc(length) + content + _masked_crc(content))


class WandbSink:
    """Logs to Weights & Biases; a resumed run continues its W&B run.

    The W&B id is drawn once and kept in `RUN/wandb_id.txt`. Steps travel as the metric `step` and
    not as W&B's own counter, which may not go back after a resume.
    """

    def __init__(self, run: str, project: str):
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                f"logging.wandb_project is '{project}', but Weights & Biases is not installed: "
                "`pip install 'maxlm[wandb]'`, or leave logging.wandb_project unset"
            ) from error
        self._wandb, self._project, self._folder = wandb, project, run
        self._run: Any = None
        id_file = storage.join(run, "wandb_id.txt")
        if not storage.exists(id_file):
            storage.write_text(id_file, uuid.uuid4().hex[:16] + "\n")
        self._id = storage.read_text(id_file).strip()

    def write(self, record: dict[str, Any]) -> None:
        """Log one record; `start` opens the W&B run. Raises MaxLMError when W&B refuses."""
        kind = record["kind"]
        if kind == "start":
            self._start(record)
        elif self._run is None:
            raise MaxLMError("a run's first record must be `start`: W&B has no run open")
        elif kind in ("train", "eval"):
            prefix = f"eval/{record['set']}" if kind == "eval" else "train"
            values = {f"{prefix}/{name}": value for name, value in numbers(record).items()}
            self._run.log({"step": record["step"], **values})
        elif kind == "sample":
            text = f"{record['prompt']}⟩{record['text']}"
            self._run.log({"step": record["step"], "sample": self._wandb.Html(_as_html(text))})
        elif kind == "end":
            self._run.summary["reason"] = record.get("reason")

    def flush(self) -> None:
        """W&B sends from a process of its own: nothing to wait for."""

    def close(self) -> None:
        """Finish the W&B run."""
        if self._run is not None:
            self._run.finish()
            self._run = None

    def _start(self, record: dict[str, Any]) -> None:
        local = None if storage.is_remote(self._folder) else self._folder
        try:
            self._run = self._wandb.init(
                project=self._project,
                name=os.path.basename(self._folder.rstrip("/")),
                id=self._id,
                resume="allow",
                config=plain(record.get("config") or {}),
                dir=local,
            )
        except Exception as error:  # W&B raises its own errors for log-in, network and settings
            raise MaxLMError(
                f"Weights & Biases would not start a run in project '{self._project}': {error}; "
                "log in with `wandb login`, set WANDB_MODE=offline, or unset logging.wandb_project"
            ) from error
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")


def read_metrics(run: str) -> list[dict[str, Any]]:
    """All records of `RUN/metrics.jsonl` that count, in order.

    At a `start` that resumed from step S (0 when there was no checkpoint to resume from) the
    earlier train, eval, sample and checkpoint records after S are dropped: a kill lost that work
    and it was done again. A torn last line (a write in progress, or a kill) is no record.

    Raises:
        StorageError: the file is missing. DataError: a line in the middle is no record.
    """
    kept: list[dict[str, Any]] = []
    for record in iterate_records(run):
        if record["kind"] == "start":
            step = begins_after(record)
            kept = [r for r in kept if r["kind"] not in REPEATED_KINDS or r["step"] <= step]
        kept.append(record)
    return kept


def begins_after(start: dict[str, Any]) -> int:
    """The step that a `start` record goes on from; 0 for one that begins."""
    return int(start.get("resumed_from") or 0)


def iterate_records(run: str) -> Iterator[dict[str, Any]]:
    """Every record ever written, lost work included, one at a time (a long run has millions)."""
    path = storage.join(run, METRICS_FILE)
    with storage.open_file(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
                _ = record["kind"], record["step"] + 0, record["time"] + 0
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}, line {number}: not a record of a run: {line[:80]!r}; delete the line "
                    "to read the rest"
                ) from error
            for name, value in record.pop("non_finite", {}).items():
                record[name] = float(value)
            yield record


def encode_record(record: dict[str, Any]) -> bytes:
    """One record as a line of JSON; NaN and infinities become `null`, named in `non_finite`."""
    content = plain(record)
    strange = {
        name: str(float(record[name]))
        for name, value in content.items()
        if value is None and record[name] is not None
    }
    if strange:
        content["non_finite"] = strange
    return (json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n").encode(
        "utf-8", "replace"
    )


def plain(value: Any) -> Any:
    """`value` in JSON's own types: numpy and jax scalars as numbers, paths and enums as text."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and jax: arrays and scalars
        return plain(value.tolist())
    return str(value)


def numbers(record: dict[str, Any]) -> dict[str, float]:
    """The numeric fields of a record, but for `step` and `time`."""
    found = {}
    for name, value in record.items():
        if name in ("kind", "step", "time") or isinstance(value, (bool, str)) or value is None:
            continue
        if hasattr(value, "item"):
            value = value.item()
        if isinstance(value, (int, float)):
            found[name] = float(value)
    return found


def _as_html(text: str) -> str:
    import html

    return f"<pre>{html.escape(text)}</pre>"


def _masked_crc(content: bytes) -> bytes:
    import google_crc32c

    crc = google_crc32c.value(content)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)
