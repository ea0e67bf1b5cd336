"""Two processes save and fall back together; one process reads what they saved."""

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_state import assert_same, host_state, make_mesh, targets

from maxlm.train.checkpoints import Checkpoints

HERE = Path(__file__).parent


def free_port() -> int:
    """A port below the range that the system gives to outgoing connections."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


@pytest.mark.slow
def test_two_processes_save_and_one_restores_bitwise(tmp_path):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    port = free_port()
    children = [
        subprocess.Popen(
            [sys.executable, str(HERE / "distributed_save.py"), str(i), str(port), str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    try:
        for process, child in enumerate(children):
            output, _ = child.communicate(timeout=120)
            assert child.returncode == 0 and f"done {process}" in output, output[-3000:]
    finally:
        for child in children:
            child.kill()
    checkpoints = Checkpoints(str(tmp_path))
    assert checkpoints.steps() == [2, 4]
    for shape in [(1, 1), (2, 4)]:
        arrays, metadata, step = checkpoints.restore(None, targets(make_mesh(*shape)))
        assert step == 4 and metadata["cursor"] == 4
        assert_same(arrays, host_state(4))
    assert checkpoints.verify(2).good and checkpoints.files(2) == {"a": b"b"}
