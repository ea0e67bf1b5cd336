"""Two phases of other mixture, length and batch: the switch comes at its step, also for a resume."""

from __future__ import annotations

import numpy as np
import pytest

from maxlm.train.checkpoints import Checkpoints
from maxlm.train.run_folder import RunFolder
from maxlm.train.sinks import read_metrics
from tests.cases import campaign
from tests.small_run import (
    batches_read,
    call,
    checksums,
    losses,
    train_here,
    write_quick_config,
    write_store,
    write_text_store,
)

pytestmark = pytest.mark.slow

SWITCH = 10  # steps of the first phase, of 20
# The first phase is given in tokens: 8 × 32 of them a step, the last step's rounded up.
PHASES = [
    {"duration": "2500 tokens", "weights": {"digits": 0}},
    {"length": 48, "batch_size": 4, "weights": {"digits": 3}},
]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A checkpoint before the switch, at the switch and after it; logged at steps of both."""
    folder = tmp_path_factory.mktemp("phases")
    store = write_text_store(folder / "store", 30_000)
    draw = np.random.default_rng(0)
    digits = {"train": ["".join(map(str, draw.integers(0, 9, 9000)))]}
    mixture = {
        "plays": {"store": str(store)},
        "digits": {"store": str(write_store(folder / "digits", digits))},
    }
    return write_quick_config(
        folder,
        store,
        data={"mixture": mixture, "phases": PHASES, "length": 32, "batch_size": 8},
        checkpoint={"every": "5 steps", "keep_last": 9},
    )


@pytest.fixture(scope="module")
def unbroken(config):
    """(run, batches) of a run that nothing interrupted."""
    with batches_read() as read:
        run = train_here(config)
    return run, read


def is_digits(row: np.ndarray) -> bool:
    """Whether a row came from the store of digits (markers aside)."""
    letters = row[row < 256]
    return bool(np.all((letters >= ord("0")) & (letters <= ord("9"))))


def test_length_batch_and_mixture_switch_at_their_step(unbroken):
    run, read = unbroken
    assert [batch.shape for batch in read] == [(8, 32)] * SWITCH + [(4, 48)] * 10
    assert [sum(map(is_digits, batch)) for batch in read] == [0] * SWITCH + [3] * 10
    records = [r for r in read_metrics(run.path) if r["kind"] == "train"]
    tokens = [8 * 32] * SWITCH + [4 * 48] * 10
    assert [r["tokens"] for r in records] == np.cumsum(tokens).tolist()
    checkpoints = Checkpoints(run.checkpoints)
    cursors = {step: checkpoints.metadata(step)["cursor"] for step in checkpoints.steps()}
    assert cursors == {5: 40, 10: 80, 15: 100, 20: 120}
    start = next(r for r in read_metrics(run.path) if r["kind"] == "start")
    assert [p["steps"] for p in start["data"]["phases"]] == [SWITCH, 10]
    assert start["total_tokens"] == sum(tokens)


# Killed at a step: what it goes on from lies before the switch, at it and after it.
@pytest.mark.parametrize(("killed_at", "resumed_from"), [(9, 5), (11, 10), campaign(18, 15)])
def test_a_resume_before_at_and_after_the_switch_is_bitwise(
    config, unbroken, tmp_path, capsys, killed_at, resumed_from
):
    run, read = unbroken
    output = f"output={tmp_path}"
    with batches_read() as first:
        mine = train_here(config, output, stop_at=killed_at)
    assert Checkpoints(mine.checkpoints).steps()[-1] == resumed_from
    with batches_read() as second:
        assert call("train", str(config), "--plain", output) == 0
    assert f"continuing from step {resumed_from} of 20" in capsys.readouterr().out
    expected = [*read[:killed_at], *read[resumed_from:]]
    for found, wanted in zip([*first, *second], expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert mine == RunFolder(f"{tmp_path}/small")
    for step in (15, 20):
        assert checksums(mine, step) == checksums(run, step)
    assert losses(mine) == losses(run)
    numbers = [[(r["step"], r["loss"]) for r in evaluations(one)] for one in (mine, run)]
    assert numbers[0] == numbers[1] and len(numbers[0]) == 3


def evaluations(run: RunFolder) -> list[dict]:
    return [r for r in read_metrics(run.path) if r["kind"] == "eval"]
