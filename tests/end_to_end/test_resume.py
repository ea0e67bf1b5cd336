"""Kill it anywhere: the same command again gives bitwise the run that nothing interrupted."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from maxlm.train.checkpoints import Checkpoints
from maxlm.train.run_folder import RunFolder
from maxlm.train.sinks import read_metrics
from tests.cases import campaign
from tests.small_run import child, maxlm, write_quick_config, write_text_store

STEPS = 40


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_text_store(tmp_path_factory.mktemp("text") / "store")


def config_in(folder, store):
    """The two optimizers at once; saves and evaluations fall on no common step but the last."""
    return write_quick_config(
        folder,
        store,
        optimizer={"kind": "muon", "learning_rate": 3e-3},
        train={"duration": f"{STEPS} steps"},
        checkpoint={"every": "7 steps"},
        eval={"every": "20 steps"},
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, store):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("unbroken")
    maxlm("train", str(config_in(folder, store)), "--plain")
    return RunFolder(str(folder / "runs" / "small"))


def final_arrays(run: RunFolder) -> dict[str, str]:
    """Every array's checksum in the last checkpoint: equal only when every bit is."""
    checkpoints = Checkpoints(run.checkpoints)
    assert checkpoints.steps()[-1] == STEPS
    assert checkpoints.verify(STEPS).good
    return {name: record.checksum for name, record in checkpoints.describe(STEPS).items()}


def losses(run: RunFolder) -> list[float]:
    return [r["loss"] for r in read_metrics(run.path) if r["kind"] == "train"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "attempts"), [(0, 4), *(campaign(seed, 12) for seed in (0, 1, 2))]
)
def test_sigkill_at_random_moments_changes_no_bit_of_the_result(
    tmp_path, store, unbroken, seed, attempts
):
    config = config_in(tmp_path, store)
    run = RunFolder(str(tmp_path / "runs" / "small"))
    draw = random.Random(seed)
    kills = 0
    for _ in range(attempts):
        process = child(["train", str(config), "--plain"])
        # Wait for a random step of this attempt, then a random moment: some fall into a save.
        target = draw.randrange(1, STEPS)
        _wait_for_step(run.metrics, target, process)
        time.sleep(draw.random() * 0.15)
        process.kill()
        process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
    assert kills >= 2
    maxlm("train", str(config), "--plain")
    assert final_arrays(run) == final_arrays(unbroken)
    np.testing.assert_array_equal(losses(run), losses(unbroken))


@pytest.mark.slow
def test_ctrl_c_and_sigterm_save_and_the_same_command_goes_on(tmp_path, store, unbroken):
    config = config_in(tmp_path, store)
    run = RunFolder(str(tmp_path / "runs" / "small"))
    for number, code, step in ((signal.SIGINT, 130, 9), (signal.SIGTERM, 75, 16)):
        process = child(["train", str(config), "--plain"])
        _wait_for_step(run.metrics, step, process)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == code, output
        assert Checkpoints(run.checkpoints).steps()[-1] >= step
    output = maxlm("train", str(config), "--plain")
    assert "continuing from step" in output
    assert final_arrays(run) == final_arrays(unbroken)
    assert "is finished" in maxlm("train", str(config), "--plain")


@pytest.mark.slow
@pytest.mark.parametrize(("fsdp", "tensor"), [(1, 2), campaign(2, 2)])
def test_a_run_goes_on_on_another_number_of_devices(tmp_path, store, unbroken, fsdp, tensor):
    config = config_in(tmp_path, store)
    run = RunFolder(str(tmp_path / "runs" / "small"))
    process = child(["train", str(config), "--plain"])
    _wait_for_step(run.metrics, 12, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    maxlm(
        "train",
        str(config),
        "--plain",
        f"parallel.fsdp={fsdp}",
        f"parallel.tensor={tensor}",
        f"parallel.cpu_devices={fsdp * tensor}",
    )
    np.testing.assert_allclose(losses(run), losses(unbroken), rtol=1e-5)


def _wait_for_step(metrics: str, step: int, process) -> None:
    """Until `metrics.jsonl` has a train record of `step` or later, or the process has ended."""
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None:
        try:
            lines = Path(metrics).read_text().splitlines()
        except FileNotFoundError:
            lines = []
        for line in reversed(lines):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if record["kind"] == "train" and record["step"] >= step:
                return
            if record["kind"] == "start":
                break  # records before this belong to an earlier attempt
        time.sleep(0.02)
