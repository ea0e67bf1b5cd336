"""Sinks: what is written can be read, by us and by others, whatever was cut off."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import types

import google_crc32c
import numpy as np
import pytest

from maxlm import storage
from maxlm.errors import ConfigError, DataError, MaxLMError, StorageError
from maxlm.train.sinks import (
    JsonlSink,
    TensorBoardSink,
    WandbSink,
    encode_record,
    open_sinks,
    read_metrics,
)


def train(step, **fields):
    return {
        "kind": "train",
        "step": step,
        "time": 1000.0 + step,
        "loss": 1.0 / (step + 1),
        **fields,
    }


def start(step=0, resumed_from=None):
    return {"kind": "start", "step": step, "time": 999.0 + step, "resumed_from": resumed_from}


def write(run, *records):
    sink = JsonlSink(str(run))
    for record in records:
        sink.write(record)
    sink.close()


def steps(run):
    return [r["step"] for r in read_metrics(str(run)) if r["kind"] == "train"]


def test_records_come_back_as_written(tmp_path):
    records = [start(), train(1, mfu=None, note="ü\u2028\n"), train(2, tokens=2**60)]
    write(tmp_path, *records)
    assert read_metrics(str(tmp_path)) == records


def test_numpy_and_enums_become_plain_json(tmp_path):
    record = train(np.int64(3), loss=np.float32(0.5), mesh=(2, 4), devices=np.arange(2))
    line = json.loads(encode_record(record))
    assert (line["step"], line["loss"], line["mesh"], line["devices"]) == (3, 0.5, [2, 4], [0, 1])


def test_nan_and_infinity_are_valid_json_and_come_back(tmp_path):
    write(tmp_path, train(1, loss=float("nan"), grad_norm=np.float32("-inf"), mfu=None))

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line["loss"] is None
    assert line["non_finite"] == {"loss": "nan", "grad_norm": "-inf"}
    record = read_metrics(str(tmp_path))[0]
    assert np.isnan(record["loss"]) and record["grad_norm"] == -np.inf and record["mfu"] is None


def test_a_resume_drops_the_lost_steps(tmp_path):
    write(tmp_path, start(), *[train(s) for s in range(1, 8)])
    write(tmp_path, start(4, resumed_from=4), *[train(s, again=True) for s in range(5, 7)])
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    kinds = [r["kind"] for r in read_metrics(str(tmp_path))]
    assert kinds.count("start") == 2


def test_a_start_from_nothing_drops_everything_before_it(tmp_path):
    write(tmp_path, start(), train(1), train(2))  # killed before its first checkpoint
    write(tmp_path, start(), train(1))
    assert steps(tmp_path) == [1]


def test_a_torn_last_line_is_ignored_and_then_overwritten(tmp_path):
    write(tmp_path, start(), train(1))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + encode_record(train(2))[:-9])
    assert steps(tmp_path) == [1]
    write(tmp_path, train(2))
    assert steps(tmp_path) == [1, 2]


def test_a_file_that_is_one_torn_line_is_emptied(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"x" * 200_000)
    write(tmp_path, train(1))
    assert steps(tmp_path) == [1]


def test_a_broken_line_in_the_middle_names_its_place(tmp_path):
    write(tmp_path, start(), train(1))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b"{nonsense\n" + encode_record(train(2)))
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 3: .*nonsense"):
        read_metrics(str(tmp_path))


def test_a_missing_file_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match=r"metrics\.jsonl"):
        read_metrics(str(tmp_path))


def test_a_folder_in_place_of_the_file_is_a_storage_error(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(StorageError, match="cannot open"):
        JsonlSink(str(tmp_path))


def test_a_full_disk_is_a_typed_error_and_leaves_whole_lines(tmp_path):
    write(tmp_path, train(1))
    limit = (tmp_path / "metrics.jsonl").stat().st_size + 20  # a part of the next line fits
    code = (
        "import resource, signal, sys\n"
        "from maxlm.errors import StorageError\n"
        "from maxlm.train.sinks import JsonlSink\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"sink = JsonlSink({str(tmp_path)!r})\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    sink.write({'kind': 'train', 'step': 2, 'time': 0.0, 'loss': 0.1})\n"
        "except StorageError as error:\n"
        "    print(error)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
        "sink.write({'kind': 'train', 'step': 3, 'time': 0.0})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "metrics.jsonl: cannot append" in done.stdout
    assert steps(tmp_path) == [1, 3]


def test_a_sigkill_loses_no_record_that_was_written(tmp_path):
    code = (
        "import os, signal\n"
        "from maxlm.train.sinks import JsonlSink\n"
        f"sink = JsonlSink({str(tmp_path)!r})\n"
        "for step in range(50):\n"
        "    sink.write({'kind': 'train', 'step': step, 'time': 0.0})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert steps(tmp_path) == list(range(50))


def test_an_object_store_gets_the_whole_object_at_close_and_appends_later():
    run = f"memory://sinks-{os.getpid()}"
    write(run, start(), train(1))
    write(run, start(1, resumed_from=1), train(2))
    assert steps(run) == [1, 2]


def test_an_object_store_is_rewritten_at_intervals():
    run = f"memory://interval-{os.getpid()}"
    sink = JsonlSink(run, upload_seconds=0)
    sink.write(train(1))
    sink._log._upload.result(timeout=10)
    assert steps(run) == [1]
    sink.close()


def test_an_object_store_that_fails_for_a_while_loses_nothing(monkeypatch):
    run = f"memory://fails-{os.getpid()}"
    whole = storage.write_bytes

    def broken(path, content):
        raise RuntimeError("503")

    sink = JsonlSink(run, upload_seconds=0)
    monkeypatch.setattr(storage, "write_bytes", broken)
    sink.write(train(1))
    with pytest.raises(StorageError, match="503"):
        sink.flush()
    monkeypatch.setattr(storage, "write_bytes", whole)
    sink.write(train(2))
    sink.close()
    assert steps(run) == [1, 2]


def read_events(folder):
    """Events of all files of a folder, checksums verified."""
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            body = content[12 : 12 + length]
            crc = google_crc32c.value(body)
            masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
            assert struct.unpack("<I", content[12 + length : 16 + length])[0] == masked
            events.append(Event.FromString(body))
            content = content[16 + length :]
    return events


def test_tensorboard_gets_scalars_and_texts(tmp_path):
    sink = TensorBoardSink(str(tmp_path))
    sink.write({**start(), "config": {"model": {"num_layers": 2}}})
    sink.write(train(5, mfu=None, tokens=np.int64(100)))
    sink.write({"kind": "eval", "step": 5, "time": 1.0, "set": "books", "loss": 2.5})
    sink.write({"kind": "sample", "step": 5, "time": 1.0, "prompt": "To be", "text": " or not"})
    sink.close()
    events = read_events(tmp_path / "tensorboard")
    assert events[0].file_version == "brain.Event:2"
    scalars = {v.tag: (e.step, v.simple_value) for e in events for v in e.summary.value}
    assert scalars["train/loss"] == (5, pytest.approx(1 / 6))
    assert scalars["train/tokens"] == (5, 100)
    assert scalars["eval/books/loss"] == (5, 2.5)
    assert "train/mfu" not in scalars
    texts = [v.tensor.string_val[0] for e in events for v in e.summary.value if "sample" in v.tag]
    assert b"To be" in texts[0] and b"or not" in texts[0]


def test_tensorboard_drops_the_lost_steps_after_a_resume(tmp_path):
    for records in ([start(), train(3), train(6)], [start(4, 4), train(5), train(6, loss=9.0)]):
        sink = TensorBoardSink(str(tmp_path))
        for record in records:
            sink.write(record)
        sink.close()
    marks = [e.step for e in read_events(tmp_path / "tensorboard") if e.HasField("session_log")]
    assert marks == [1, 5]
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed: its own reader cannot be asked",
    )
    reader = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    points = [(s.step, s.value) for s in reader.Scalars("train/loss")]
    assert points == [(3, pytest.approx(0.25)), (5, pytest.approx(1 / 6)), (6, 9.0)]


class FakeWandb(types.ModuleType):
    """Keeps what it is told."""

    def __init__(self):
        super().__init__("wandb")
        self.calls, self.logs, self.summary, self.finished = [], [], {}, 0
        self.refuse = False

    def init(self, **options):
        if self.refuse:
            raise RuntimeError("no API key")
        self.calls.append(options)
        return self

    def define_metric(self, name, step_metric=None):
        pass

    def log(self, values):
        self.logs.append(values)

    def finish(self):
        self.finished += 1

    Html = staticmethod(lambda text: text)


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_numbers_samples_and_config(tmp_path, wandb):
    sink = WandbSink(str(tmp_path / "mine"), "project")
    sink.write({**start(), "config": {"seed": 1}})
    sink.write(train(5))
    sink.write({"kind": "sample", "step": 5, "time": 1.0, "prompt": "<b>", "text": "x"})
    sink.write({"kind": "end", "step": 5, "time": 1.0, "reason": "finished"})
    sink.close()
    assert wandb.calls[0]["project"] == "project" and wandb.calls[0]["name"] == "mine"
    assert wandb.calls[0]["config"] == {"seed": 1}
    assert wandb.logs[0] == {"step": 5, "train/loss": pytest.approx(1 / 6)}
    assert "&lt;b&gt;" in wandb.logs[1]["sample"]
    assert wandb.summary == {"reason": "finished"} and wandb.finished == 1


def test_wandb_continues_its_run_after_a_resume(tmp_path, wandb):
    for _ in range(2):
        sink = WandbSink(str(tmp_path), "project")
        sink.write(start())
        sink.close()
    assert wandb.calls[0]["id"] == wandb.calls[1]["id"]
    assert wandb.calls[1]["resume"] == "allow"


def test_wandb_that_refuses_says_what_to_do(tmp_path, wandb):
    wandb.refuse = True
    with pytest.raises(MaxLMError, match=r"no API key.*wandb login"):
        WandbSink(str(tmp_path), "project").write(start())


def test_wandb_asked_but_not_installed_is_a_config_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"maxlm\[wandb\]"):
        open_sinks(str(tmp_path), wandb_project="p")
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_checkpoint_record_flushes_every_sink(tmp_path):
    sinks = open_sinks(str(tmp_path))
    flushed = []
    for sink in sinks.sinks:
        sink.flush = lambda: flushed.append(1)
    sinks.write({"kind": "checkpoint", "step": 1, "time": 1.0, "path": "x"})
    assert len(flushed) == 2
    sinks.close()
