"""`maxlm report` from the command line."""

from __future__ import annotations

import subprocess
import sys
import time

from maxlm.cli.main import main
from maxlm.train.sinks import JsonlSink


def make_run(folder):
    sink = JsonlSink(str(folder))
    sink.write({"kind": "start", "step": 0, "time": 1.0, "resumed_from": None, "total_steps": 1})
    sink.write({"kind": "train", "step": 1, "time": 2.0, "loss": 1.0, "tokens": 10})
    sink.close()
    return str(folder)


def test_it_writes_the_page_and_says_where(tmp_path, capsys):
    run = make_run(tmp_path / "r")
    assert main(["report", run]) == 0
    assert capsys.readouterr().out == f"wrote {run}/report.html\n"
    assert (tmp_path / "r" / "report.html").stat().st_size > 10_000


def test_it_compares_runs_into_a_named_file(tmp_path):
    runs = [make_run(tmp_path / name) for name in ("a", "b")]
    assert main(["report", *runs, "--output", str(tmp_path / "new" / "both.html")]) == 0
    assert "2 runs compared" in (tmp_path / "new" / "both.html").read_text()


def test_a_missing_run_exits_2_and_names_the_file(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "metrics.jsonl: no such file" in capsys.readouterr().err


def test_help_is_quick_and_shows_examples():
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "maxlm.cli.main", "report", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert time.perf_counter() - began < 2.0  # measured 0.1 s; a busy machine may be slow
    assert "maxlm report runs/adamw runs/muon" in done.stdout
