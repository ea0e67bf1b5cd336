"""One process at a time on a folder, and the lock ends with the process that held it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from maxlm.errors import StorageError
from maxlm.lock import only_process
from tests.small_run import call, write_quick_config, write_text_store

HOLD = """
import sys
from maxlm.lock import only_process
with only_process(sys.argv[1], "busy"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process_holds(path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_and_told_the_first(tmp_path):
    path = tmp_path / "folder" / "lock"
    with another_process_holds(path) as process:
        who = rf"mine \(pid {process.pid} on {socket.gethostname()} since .*\): wait for it"
        with pytest.raises(StorageError, match=who), only_process(str(path), "mine"):
            pass
        process.communicate(b"")  # it ends by itself
        assert not path.parent.exists()
    with only_process(str(path), "mine"):
        assert path.read_text().startswith(f"pid {os.getpid()} on ")


def test_a_killed_process_holds_nothing(tmp_path):
    path = tmp_path / "lock"
    with another_process_holds(path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert path.exists()
        with only_process(str(path), "mine"):
            pass
    assert not path.exists()


def test_never_two_at_once_however_fast_they_come_and_go(tmp_path):
    path, inside, most, entered = str(tmp_path / "folder" / "lock"), [], [], []

    def work():
        for _ in range(300):
            try:
                with only_process(path, "busy"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
                    entered.append(1)
            except StorageError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert entered and max(most) == 1


def test_a_run_that_another_process_trains_is_refused_before_anything_is_written(tmp_path, capsys):
    config = write_quick_config(tmp_path / "run", write_text_store(tmp_path / "store", 20_000))
    folder = tmp_path / "run" / "runs" / "small"
    with another_process_holds(folder / "lock") as process:
        assert call("train", str(config), "--plain") == 2
        said = capsys.readouterr().err
        assert (
            f"{folder}: another process is training in this run's folder (pid {process.pid}" in said
        )
        assert os.listdir(folder) == ["lock"]
    assert call("train", str(config), "--plain", "train.duration=2 steps") == 0
    assert not (folder / "lock").exists()
