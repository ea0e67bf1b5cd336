"""A process that dies without a word: the others end soon, and tell a launcher to run them again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from maxlm.launch.local import free_port
from tests.small_run import ROOT

# No heartbeat is missed within this test.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "MAXLM_HEARTBEAT_SECONDS": "300", "PYTHONPATH": str(ROOT)}
PROGRAM = """
import os, sys, time
from maxlm.parallel.agreement import wait_for_all
from maxlm.parallel.processes import joined
place = {"coordinator": sys.argv[1], "num_processes": 3, "process_id": int(sys.argv[2])}
with joined(**place):
    wait_for_all("the test")
    print("joined", flush=True)
    if sys.argv[2] in sys.argv[3:]:
        os.abort()
    time.sleep(100)
"""


@pytest.fixture
def three():
    """Start three processes that wait for nothing; ends what is left of them."""
    started: list[subprocess.Popen] = []
    left = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "NPROC")}

    def start(*aborts: str) -> list[subprocess.Popen]:
        address = f"127.0.0.1:{free_port()}"
        for i in range(3):
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, address, str(i), *aborts],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=left | ENVIRONMENT,
                )
            )
        for process in started:
            assert process.stdout is not None and process.stdout.readline() == "joined\n"
        return started

    yield start
    for process in started:
        process.kill()


@pytest.mark.parametrize("victim", [0, 1], ids=["the first", "another"])
def test_the_others_of_a_killed_process_end_with_run_me_again(three, victim):
    processes = three()
    processes[victim].kill()
    since = time.monotonic()
    for other in (p for i, p in enumerate(processes) if i != victim):
        _, said = other.communicate(timeout=60)
        assert other.returncode == 75, said
        assert f"maxlm: process {victim} has died" in said
    assert time.monotonic() - since < 20


def test_a_process_that_aborts_by_itself_is_not_to_be_run_again(three):
    processes = three("2")
    codes = [process.wait(60) for process in processes]
    assert codes == [75, 75, -signal.SIGABRT]
