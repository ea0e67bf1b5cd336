"""The display: what it says, on a terminal and elsewhere, and that it can never end a run."""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import pty
import struct
import subprocess
import sys
import termios
import time

import pytest

from maxlm.train import quantities as q
from maxlm.train.display import Display

START = {
    "kind": "start",
    "step": 0,
    "time": 0.0,
    "resumed_from": None,
    "devices": 8,
    "device_kind": "TPU v5p",
    "mesh": {"replica": 2, "fsdp": 4, "tensor": 1},
    "processes": 1,
    "parameters": 804_096,
    "total_steps": 100,
    "tokens_per_step": 1000,
    "flops_per_token": 5e6,
    "config": {"model": {"num_layers": 4, "embed_dim": 128, "num_heads": 4}},
    "data": {"sources": {"shakespeare": {"tokens": 1_003_854}}},
}


def train(step, **fields):
    record = {"kind": "train", "step": step, "time": float(step), "loss": 2.5, "mfu": None}
    return {**record, "tokens_per_second": 12_345.0, "skipped_steps": 0, **fields}


def evaluation(step, loss, name="books"):
    return {"kind": "eval", "step": step, "time": 0.0, "set": name, "loss": loss}


END = {"kind": "end", "step": 100, "time": 0.0, "reason": "finished", "seconds": 161.0}


def shown(*records, every_seconds=0.0):
    stream = io.StringIO()
    display = Display("runs/mine", stream=stream, every_seconds=every_seconds)
    for record in records:
        display.write(record)
    display.close()
    return stream.getvalue()


def test_the_start_says_what_runs_and_where():
    text = shown(START)
    for part in ("mine", "a new run", "4 layers × 128 wide", "804k parameters", "8 × TPU v5p"):
        assert part in text
    for part in (
        "replica 2 × fsdp 4",
        "100 steps × 1,000 tokens",
        "shakespeare 1.00M",
        "runs/mine",
    ):
        assert part in text
    assert "tensor" not in text


def test_a_resumed_run_says_so():
    assert "resumed from step 1,200" in shown({**START, "resumed_from": 1200})


def test_a_start_record_with_little_in_it_is_no_trouble():
    assert "maxlm · mine" in shown({"kind": "start", "step": 0, "time": 0.0})


def test_plain_lines_come_at_intervals_and_the_last_always():
    text = shown(START, *[train(s) for s in range(1, 101)], every_seconds=1000.0)
    assert [line.split()[1] for line in text.splitlines() if "tokens/s" in line] == [
        "1/100",
        "100/100",
    ]


def test_a_line_names_only_what_is_known():
    text = shown(START, train(5, mfu=0.412, grad_norm=0.5))
    assert "loss 2.500  grad 0.500  12.3k tokens/s  MFU 41.2%" in text
    assert "MFU" not in shown(START, train(5))


def test_an_evaluation_that_improves_is_called_best():
    lines = shown(START, evaluation(10, 2.0), evaluation(20, 1.5), evaluation(30, 1.7)).splitlines()
    assert [line.endswith("(best so far)") for line in lines[-3:]] == [False, True, False]


def test_skipped_steps_are_told_once():
    text = shown(START, train(1), train(2, skipped_steps=2), train(3, skipped_steps=2))
    assert text.count("gradients were not finite") == 1
    assert "2 steps skipped" in text


def test_the_last_line_is_for_programs():
    line = shown(START, train(100, tokens=9), evaluation(100, 1.5), END).splitlines()[-1]
    assert line.startswith("maxlm-result ")
    result = json.loads(line.removeprefix("maxlm-result "))
    assert (result["reason"], result["step"], result["loss"]) == ("finished", 100, 2.5)
    assert result["eval"]["books"]["loss"] == result["best_eval_loss"]["books"] == 1.5


def test_the_last_line_is_json_when_the_loss_is_not_finite():
    line = shown(START, train(100, loss=math.nan), evaluation(100, math.nan), END).splitlines()[-1]
    assert (
        json.loads(line.removeprefix("maxlm-result "), parse_constant=pytest.fail)["loss"] is None
    )


@pytest.mark.parametrize("reason", ["interrupted", "terminated"])
def test_an_interrupted_run_says_how_to_go_on(reason):
    text = shown(START, train(40), {**END, "step": 40, "reason": reason})
    assert f"{reason} at step 40 of 100" in text and "the same command again" in text


def test_derived_values_are_told_with_their_rules():
    derived = [{"key": "train.duration", "value": "100 steps", "rule": "20 tokens per parameter"}]
    text = shown({**START, "derived": derived})
    assert "derived   train.duration = 100 steps (20 tokens per parameter)" in text


def test_a_sample_cannot_steer_the_terminal():
    sample = {"kind": "sample", "step": 1, "time": 0.0, "prompt": "A", "text": "\x1b[2J\x07\nb\x9b"}
    text = shown(START, sample)
    assert not any(c in text for c in "\x1b\x07\x9b")
    assert "│ A" in text and "│ b" in text


def test_a_reader_that_goes_away_does_not_end_the_run():
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    display = Display("runs/mine", stream=Gone())
    for record in (START, train(1), END):
        display.write(record)
    display.close()


def test_a_c_locale_does_not_end_the_run():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    display = Display("runs/mine", stream=stream)
    display.write(START)
    assert b"4 layers ? 128 wide" in stream.buffer.getvalue()


def test_time_left_follows_the_rate(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    display = Display("runs/mine", stream=io.StringIO())
    display.write(START)
    for step in (10, 20):
        now[0] += 5.0
        display.write(train(step))
    assert display._progress.seconds_left == 40.0
    now[0] += 3.0
    assert display._progress.seconds_left == 37.0


@pytest.mark.parametrize("columns", [120, 60, 30])
def test_on_a_terminal_it_draws_within_the_width(columns):
    code = (
        "import time, json\n"
        "from maxlm.train.display import Display\n"
        f"start, train, end = json.loads({json.dumps(json.dumps([START, train(50), END]))})\n"
        "display = Display('runs/mine')\n"
        "display.write(start); display.write(train); time.sleep(1.2)\n"
        "display.write(end); display.close()\n"
    )
    text = run_in_terminal(code, columns)
    assert "50/100" in text and "50%" in text and "loss 2.500" in text
    assert "maxlm-result {" in text
    assert "\x1b[?25h" in text  # the cursor is shown again


def run_in_terminal(code, columns):
    """What a program writes to a terminal of `columns` columns."""
    main, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    environment.pop("COLUMNS", None)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=child, stderr=child, env=environment
    )
    os.close(child)
    content = b""
    while True:
        try:
            piece = os.read(main, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not piece:
            break
        content += piece
    os.close(main)
    assert process.wait(timeout=30) == 0, content.decode()
    return content.decode()


def test_a_record_costs_the_loop_next_to_nothing():
    display = Display("runs/mine", stream=io.StringIO(), every_seconds=1000.0)
    display.write(START)
    began = time.perf_counter()
    for step in range(2000):
        display.write(train(step))
    assert (time.perf_counter() - began) / 2000 < 200e-6  # measured: a few microseconds


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (q.count, 999_999, "1.00M"),
        (q.count, 999, "999"),
        (q.count, 12_345, "12.3k"),
        (q.count, None, "–"),
        (q.count, math.nan, "–"),
        (q.size, 9_600_000, "9.60 MB"),
        (q.clock, 3723, "1:02:03"),
        (q.clock, 43, "0:43"),
        (q.clock, 90_000, "1d 01:00"),
        (q.duration, 0.0612, "61.2 ms"),
        (q.duration, 59.99, "1 min 00 s"),
        (q.duration, 161, "2 min 41 s"),
        (q.duration, 11_100, "3 h 05 min"),
        (q.percent, 0.412, "41.2%"),
        (q.number, 1.8434, "1.843"),
        (q.number, 3e-4, "3.00e-04"),
        (q.number, 123_456.0, "1.23e+05"),
        (q.number, 12_345.6, "12,346"),
        (q.number, math.inf, "inf"),
        (q.number, 0.0, "0"),
    ],
)
def test_quantities_read_well(show, value, text):
    assert show(value) == text
