"""The launcher with small programs in place of a training: who died, of what, what it shows."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from maxlm.errors import ParallelError
from maxlm.launch import local
from tests.small_run import call


@pytest.fixture
def program(monkeypatch, tmp_path):
    """Launch Python code instead of `maxlm`; `i` is the process's number."""

    def run(code: str, processes: int = 2, **options) -> tuple[int, str]:
        stub = tmp_path / "stub.py"
        head = "import os, signal, sys, time\ni = int(os.environ['JAX_PROCESS_ID'])\n"
        stub.write_text(head + code)
        # The launcher starts `python -m maxlm.cli.main …`: a python that runs the stub instead.
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\nexec {sys.executable} -u {stub}\n")
        python.chmod(0o755)
        monkeypatch.setattr(local.sys, "executable", str(python))
        output = io.StringIO()
        code = local.launch(
            ["train"], processes=processes, logs=str(tmp_path / "logs"), output=output, **options
        )
        return code, output.getvalue()

    return run


def test_each_process_is_told_its_place(program, tmp_path):
    code, text = program(
        "names = ['COORDINATOR_ADDRESS', 'NUM_PROCESSES', 'PROCESS_ID', 'NUM_CPU_DEVICES',"
        "'LOCAL_DEVICE_IDS']\nprint(*[os.environ['JAX_' + n] for n in names])",
        processes=3,
        devices_per_process=2,
    )
    assert code == 0
    said = [(tmp_path / "logs" / f"process-{i}.log").read_text().split() for i in range(3)]
    assert [words[1:] for words in said] == [
        ["3", "0", "2", "0,1"],
        ["3", "1", "2", "2,3"],
        ["3", "2", "2", "4,5"],
    ]
    (address,) = {words[0] for words in said}
    assert 1024 < int(address.removeprefix("127.0.0.1:")) < 32_768
    assert f"[0] {address}" in text and "[1]" not in text


def test_a_process_that_dies_ends_the_others_and_its_last_lines_are_shown(program, monkeypatch):
    monkeypatch.setattr(local, "GRACE_SECONDS", 0.5)
    since = time.monotonic()
    code, text = program("print(f'hello of {i}')\nif i == 1: sys.exit(3)\ntime.sleep(60)")
    assert code == 3 and time.monotonic() - since < 20
    assert "process 1 exited with status 3; the others were ended" in text
    assert "[1] hello of 1" in text and "process-1.log" in text


def test_a_killed_process_is_said_to_be_and_not_those_that_it_took_along(program):
    code, text = program(
        "if i == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "time.sleep(0.5)\n"
        "os.kill(os.getpid(), signal.SIGABRT) if i else sys.exit(75)",
        processes=4,
    )
    assert code == 128 + signal.SIGKILL
    assert "process 2 was killed by SIGKILL" in text


def test_the_process_that_failed_is_found_by_what_the_others_say(program):
    # Those that hear of a failure may end before the one that failed.
    code, text = program(
        "if i == 1:\n    time.sleep(1)\n    print('no such store')\n    sys.exit(2)\n"
        "print('maxlm: process 1 failed: no such store; this process ends too')\nsys.exit(2)",
        processes=3,
    )
    assert code == 2
    assert "process 1 exited with status 2" in text and "[1] no such store" in text


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signals_reach_all_and_the_status_is_the_runs_own(program, tmp_path, number, expected):
    ready = [tmp_path / f"ready{i}" for i in range(2)]

    def send() -> None:
        while not all(path.exists() for path in ready):
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    code, text = program(
        f"def end(number, frame):\n    time.sleep(i)\n    sys.exit({expected})\n"
        f"signal.signal({int(number)}, end)\n"
        f"open({str(tmp_path)!r} + f'/ready{{i}}', 'w').close()\ntime.sleep(60)"
    )
    thread.join()
    assert code == expected and "were ended" not in text


def test_numbers_that_make_no_sense_are_refused():
    with pytest.raises(ParallelError, match="0 processes with 1 devices each"):
        local.launch(["train"], processes=0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "after `--` comes a command .*: train, eval, generate, import"),
        (["trian", "x"], "not 'trian' .did you mean 'train'"),
        (["data", "tokenize"], "not 'data'"),
    ],
)
def test_only_commands_that_several_processes_run_together_are_launched(words, message, capsys):
    import re

    assert call("launch", "local", "--processes", "2", "--", *words) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_missing_config_is_said_once_by_each(tmp_path: Path, capsys):
    logs = ["--logs", str(tmp_path)]
    assert call("launch", "local", "--processes", "1", *logs, "--", "train", "no/such.yaml") == 2
    assert "no/such.yaml" in capsys.readouterr().out
