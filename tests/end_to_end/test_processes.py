"""Real processes train one run: killed on four, gone on with on two, then on one.

The batches, and so the losses, are those of one process all along. One story, because every start of
four processes costs half a minute of two cores.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from maxlm.launch.local import free_port
from maxlm.train.checkpoints import Checkpoints
from maxlm.train.run_folder import RunFolder
from maxlm.train.sinks import read_metrics
from tests.small_run import (
    FLAGS,
    ROOT,
    losses,
    maxlm,
    train_here,
    write_quick_config,
    write_text_store,
)

pytestmark = pytest.mark.slow

STEPS = 400  # more than are ever taken
CONFIG = {
    "model": {"num_layers": 1, "embed_dim": 16, "num_heads": 4},
    "train": {"duration": f"{STEPS} steps"},
    "checkpoint": {"every": "5 steps"},
    "eval": {"every": "10 steps", "prompts": ["ROMEO:"], "sample_tokens": 3},
}


@dataclass
class Ended:
    """A start of several processes that has ended."""

    code: int
    text: str
    seconds: float  # from what was done to it to its end


def environment() -> dict[str, str]:
    left = {name: value for name, value in os.environ.items() if name != "NPROC"}
    return left | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": FLAGS,  # four processes compile a step each
        "MAXLM_JOIN_SECONDS": "60",
        "PYTHONPATH": str(ROOT),
    }


def launched(
    folder: Path, options: list[str], command: list[str], act: Callable[[list[int]], None]
) -> Ended:
    """Start through the launcher, do something to the processes (their ids), wait for the end."""
    launcher = subprocess.Popen(
        [
            *(sys.executable, "-m", "maxlm.cli.main", "launch", "local"),
            *("--logs", str(folder), *options, "--", *command),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment(),
    )
    try:
        act([launcher.pid])
        since = time.monotonic()
        text, _ = launcher.communicate(timeout=120)
    finally:
        launcher.kill()
    return Ended(launcher.returncode, text, time.monotonic() - since)


def children(launcher: int) -> list[int]:
    """Ids of the processes that a launcher started, in their order."""
    return [int(p) for p in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]


def wait_for_step(run: RunFolder, step: int, kind: str = "train") -> None:
    """Return when the run has written a record of this step; it must do so within two minutes."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if Path(run.metrics).exists():
            found = [r["step"] for r in read_metrics(run.path) if r["kind"] == kind]
            if found and max(found) >= step:
                return
        time.sleep(0.1)
    pytest.fail(f"{run.path} did not come to step {step}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def config(folder):
    store = write_text_store(folder / "store", 30_000)
    return write_quick_config(folder, store, **CONFIG)


@pytest.fixture(scope="module")
def run(folder):
    return RunFolder(str(folder / "runs" / "small"))


@pytest.fixture(scope="module")
def killed(folder, config, run):
    """Four processes of one device, `tensor` and `context` over two each; the third is killed."""

    def kill(launcher: list[int]) -> None:
        wait_for_step(run, 7)
        os.kill(children(launcher[0])[2], signal.SIGKILL)

    layout = ["parallel.context=2", "parallel.tensor=2", "parallel.fsdp=1", "--plain"]
    ended = launched(folder / "four", ["--processes", "4"], ["train", str(config), *layout], kill)
    shutil.copytree(run.path, folder / "killed")
    return ended


@pytest.fixture(scope="module")
def stopped(folder, config, run, killed):
    """Two processes of two devices go on, `tensor` over all four; the second gets a SIGTERM."""
    begin = Checkpoints(run.checkpoints).steps()[-1]

    def stop(launcher: list[int]) -> None:
        wait_for_step(run, begin + 4)
        os.kill(children(launcher[0])[1], signal.SIGTERM)

    options = ["--processes", "2", "--devices-per-process", "2"]
    layout = ["parallel.tensor=4", "parallel.fsdp=1", "--plain"]
    return launched(folder / "two", options, ["train", str(config), *layout], stop)


def test_a_killed_process_ends_the_others_soon_and_the_launcher_says_which_and_why(killed, folder):
    assert killed.code == 128 + signal.SIGKILL
    assert "maxlm launch: process 2 was killed by SIGKILL; the others were ended" in killed.text
    assert killed.seconds < 40
    logs = sorted((folder / "four").iterdir())
    assert [log.name for log in logs] == [f"process-{i}.log" for i in range(4)]
    assert "4 processes" in killed.text and "context 2 × tensor 2" in killed.text
    # What each prints is told apart, and the first alone speaks of the run.
    assert re.search(r"^\[0\] step 5: saved ", killed.text, re.MULTILINE)
    assert all("saved" not in log.read_text() for log in logs[1:])


def test_a_signal_to_one_process_stops_all_at_one_step_with_a_checkpoint(stopped, run):
    assert stopped.code == 75, stopped.text
    assert "continuing from step" in stopped.text and "tensor 4, 2 processes" in stopped.text
    ends = [record for record in read_metrics(run.path) if record["kind"] == "end"]
    assert ends[-1]["reason"] == "terminated"
    assert Checkpoints(run.checkpoints).steps()[-1] == ends[-1]["step"]
    assert "process 1 failed" not in stopped.text


def test_losses_on_four_on_two_and_on_one_process_are_those_of_one_all_along(
    stopped, folder, config, run
):
    last = Checkpoints(run.checkpoints).steps()[-1]
    train_here(config, stop_at=last + 4)  # one process, one device, from what two have saved
    unbroken = write_quick_config(folder / "unbroken", folder / "store", **CONFIG)
    expected = losses(train_here(unbroken, stop_at=last + 4))
    found = losses(run)
    assert found.keys() == expected.keys() and max(found) == last + 4
    assert found == pytest.approx(expected, rel=1e-5)
    evaluated = {r["step"]: r["loss"] for r in read_metrics(run.path) if r["kind"] == "eval"}
    one = read_metrics(f"{folder}/unbroken/runs/small")
    assert evaluated == pytest.approx(
        {r["step"]: r["loss"] for r in one if r["kind"] == "eval"}, rel=1e-5
    )


def test_a_checkpoint_of_four_processes_restores_on_one(killed, folder):
    shutil.copytree(folder / "killed", folder / "alone" / "runs" / "small")
    step = Checkpoints(str(folder / "killed" / "checkpoints")).steps()[-1]
    alone = write_quick_config(folder / "alone", folder / "store", **CONFIG)
    alone = train_here(alone, stop_at=step + 1)
    resumed = [r for r in read_metrics(alone.path) if r["kind"] == "start"][-1]
    assert resumed["resumed_from"] == step and resumed["processes"] == 1
    assert Checkpoints(str(folder / "killed" / "checkpoints")).verify(step).good


@pytest.mark.parametrize("taken", [False, True], ids=["nobody joins", "the port is in use"])
def test_a_start_that_cannot_come_about_says_why_and_writes_nothing(tmp_path, taken):
    write_quick_config(tmp_path, "no/store/is/opened")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1] if taken else free_port()
        place = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "3", "--process-id", "0"]
        config = str(tmp_path / "small.json")
        said = maxlm("train", config, "--plain", *place, code=2, MAXLM_JOIN_SECONDS="1")
    expected = f"port {port} is in use" if taken else "processes 1, 2 of 3 did not join within 1 s"
    assert expected in said and "Traceback" not in said
    assert not list((tmp_path / "runs").rglob("*"))


def two_starts(tmp_path: Path, *overrides: list[str], where: list[Path]) -> list[tuple[int, str]]:
    """Two processes started by hand, each its own way: exit status and output of each."""
    place = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2"]
    started = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "maxlm.cli.main", "train", str(tmp_path / "small.json")),
                *("--plain", *place, "--process-id", str(i), *extra),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=where[i],
            env=environment(),
        )
        for i, extra in enumerate(overrides)
    ]
    try:
        texts = [process.communicate(timeout=100)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(p.returncode, text) for p, text in zip(started, texts, strict=True)]


def test_processes_with_different_configs_are_refused_at_start(tmp_path):
    write_quick_config(tmp_path, "no/store/is/opened")
    ends = two_starts(tmp_path, ["train.seed=1"], ["train.seed=2"], where=[tmp_path, tmp_path])
    for code, text in ends:
        assert code == 2, text
        assert "do not have the same config" in text and "Traceback" not in text
        assert "process 1: train.seed is 2, process 0 has 1" in text
    assert not list((tmp_path / "runs").rglob("*"))


def test_processes_with_different_code_are_refused_at_start(tmp_path):
    """Two checkouts of one version, of which one has been changed."""
    checkouts = [tmp_path / "a", tmp_path / "b"]
    for checkout in checkouts:
        shutil.copytree(ROOT / "maxlm", checkout / "maxlm", ignore=shutil.ignore_patterns("__py*"))
    with open(checkouts[1] / "maxlm" / "train" / "schedule.py", "a") as changed:
        changed.write("# Another line.\n")
    write_quick_config(tmp_path, "no/store/is/opened")
    for code, text in two_starts(tmp_path, [], [], where=checkouts):
        assert code == 2, text
        assert "do not have the same code" in text and "Traceback" not in text
        assert re.search(r"process 1: maxlm's source is (\w+), process 0 has (?!\1)\w+", text)
        assert "install the same version everywhere" in text
    assert not list((tmp_path / "runs").rglob("*"))


def test_a_killed_launcher_takes_its_processes_along(tmp_path):
    write_quick_config(tmp_path, "no/store/is/opened")
    launcher = subprocess.Popen(
        [
            *(sys.executable, "-m", "maxlm.cli.main", "launch", "local", "--processes", "2"),
            *("--logs", str(tmp_path / "logs"), "--", "train", str(tmp_path / "small.json")),
        ],
        cwd=ROOT,
        env=environment(),
    )
    started: list[int] = []
    try:
        while len(started) < 2:
            assert launcher.poll() is None
            started = children(launcher.pid)
    finally:
        launcher.kill()
        launcher.wait()
    deadline = time.monotonic() + 30
    while left := [p for p in started if is_running(p)]:
        assert time.monotonic() < deadline, f"{left} still run"
        time.sleep(0.1)


def is_running(process: int) -> bool:
    """Whether it is there, and not only waiting for someone to take note of its end."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_processes_with_different_data_are_refused_at_start(tmp_path):
    places = [tmp_path / "a", tmp_path / "b"]
    for place, characters in zip(places, (30_000, 29_000), strict=True):
        write_text_store(place / "store", characters)
    write_quick_config(tmp_path, "store")
    for code, text in two_starts(tmp_path, [], [], where=places):
        assert code == 2, text
        assert "do not have the same data" in text and "Traceback" not in text
        assert re.search(r"process 1: data\.mixture\.plays is \w+, process 0 has \w+", text)
    assert not list((tmp_path / "runs").rglob("*"))


def test_an_error_on_one_process_ends_the_other_which_says_whose_it_was(tmp_path):
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        write_text_store(place / "store", 30_000)
    tokens = next((places[1] / "store" / "train").glob("*.tokens"))
    content = bytearray(tokens.read_bytes())
    content[len(content) // 2] ^= 1
    tokens.write_bytes(content)
    write_quick_config(tmp_path, "store")
    (code, text), (other_code, other_text) = two_starts(tmp_path, [], [], where=places)
    assert code == other_code == 2, text + other_text
    assert re.search(r"^maxlm train: .*are damaged \(CRC32C", other_text, re.MULTILINE)
    said = r"^maxlm: process 1 failed: .*are damaged .*; this process ends too$"
    assert re.search(said, text, re.MULTILINE)
