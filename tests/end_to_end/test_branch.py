"""Runs that start from another run: a branch goes on with its data, `init_from` takes weights."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from maxlm.config.load import load_config
from maxlm.train.checkpoints import Checkpoints
from maxlm.train.run_folder import RunFolder
from maxlm.train.setup import prepare
from maxlm.train.sinks import read_metrics
from tests.small_run import (
    AS_USERS,
    batches_read,
    call,
    checksums,
    devices,
    losses,
    train_here,
    write_quick_config,
    write_store,
    write_text_store,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("branch")


@pytest.fixture(scope="module")
def store(folder):
    return write_text_store(folder / "store", 30_000)


@pytest.fixture(scope="module")
def digits(folder):
    """A store of digits: its rows are told from those of text at sight."""
    draw = np.random.default_rng(0)
    return write_store(folder / "digits", {"train": ["".join(map(str, draw.integers(0, 9, 9000)))]})


# One rate throughout, so that a branch computes what its parent went on to compute.
CONSTANT = {"warmup": "0 steps", "decay_fraction": 0}
AVERAGE = {"average_decay": 0.5}


@pytest.fixture(scope="module")
def config(folder, store):
    as_users = {"compiler_options": AS_USERS}
    return write_quick_config(
        folder, store, schedule=CONSTANT, optimizer=AVERAGE, parallel=as_users
    )


@pytest.fixture(scope="module")
def parent(config):
    """(run, batches): twenty steps; checkpoints at 8, 16 and 20."""
    with batches_read() as read:
        run = train_here(config)
    return run, read


# A branch from step 16 that goes two steps further than the parent; a checkpoint at 20 too.
LONGER = ["train.duration=6 steps", "checkpoint.every=4 steps"]


@pytest.fixture(scope="module")
def longer(parent, config, folder):
    """(run, batches): the branch."""
    with batches_read() as read:
        output = f"output={folder / 'longer'}"
        run = train_here(config, output, *LONGER, branch_from=f"{parent[0].path}@16")
    return run, read


@pytest.fixture(autouse=True)
def untouched(parent):
    """Whatever a test starts from the parent, not a byte in the parent's folder changes."""
    before = content(parent[0].path)
    yield
    assert content(parent[0].path) == before


def content(folder: str) -> dict[str, tuple[int, bytes]]:
    """Time of change and bytes of every file."""
    files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def is_digits(row: np.ndarray) -> bool:
    """Whether a row came from the store of digits (markers aside)."""
    letters = row[row < 256]
    return bool(np.all((letters >= ord("0")) & (letters <= ord("9"))))


def of_text(batches: list[np.ndarray]) -> np.ndarray:
    """Rows of text, in the order in which they were read."""
    return np.array([row for batch in batches for row in batch if not is_digits(row)])


def test_a_branch_reads_on_and_computes_on_where_its_parent_stopped(parent, longer):
    (run, read), (branch, mine) = parent, longer
    np.testing.assert_array_equal(mine[:4], read[16:])
    seen = {row.tobytes() for row in np.concatenate(read)}
    assert not any(row.tobytes() in seen for row in np.concatenate(mine[4:]))
    assert list(losses(branch)) == list(range(17, 23))
    assert [losses(branch)[s] for s in range(17, 21)] == [losses(run)[s] for s in range(17, 21)]
    assert checksums(branch, 20) == checksums(run, 20)
    records = [r for r in read_metrics(branch.path) if r["kind"] == "train"]
    assert [r["tokens"] for r in records] == [256 * step for step in range(17, 23)]
    assert Checkpoints(branch.checkpoints).metadata(22)["cursor"] == 22 * 8


def test_a_killed_branch_goes_on_bitwise_without_its_parent(
    parent, longer, config, tmp_path, capsys
):
    mine = Path(shutil.copytree(parent[0].path, tmp_path / "mine"))
    change = [f"output={tmp_path}", *LONGER]
    killed = train_here(config, *change, branch_from=f"{mine}@16", stop_at=21)
    assert f"branching from step 16 of {mine}" in capsys.readouterr().out
    assert Checkpoints(killed.checkpoints).steps() == [20]
    shutil.rmtree(mine)
    assert call("train", str(config), "--plain", *change, "--branch-from", f"{mine}@16") == 0
    assert "continuing from step 20 of 22" in capsys.readouterr().out
    assert checksums(killed, 22) == checksums(longer[0], 22)
    assert losses(killed) == losses(longer[0])


def test_new_sources_and_a_branch_of_a_branch_read_on_too(parent, config, digits, tmp_path):
    run, read = parent
    text = np.concatenate(read)
    mixed = ["train.duration=6 steps", f"data.mixture.digits.store={digits}"]
    with batches_read() as first:
        branch = train_here(config, f"output={tmp_path}", *mixed, branch_from=f"{run.path}@16")
    assert [sum(map(is_digits, batch)) for batch in first] == [4] * 6
    np.testing.assert_array_equal(of_text(first), text[16 * 8 : 19 * 8])
    again = [f"output={tmp_path}", "name=again", "train.duration=3 steps"]
    with devices(1):
        second = prepare(load_config(str(config), again), branch_from=branch.path)
    assert second.timeline.total_steps == 25
    cursor = second.timeline.at_step(22).cursor
    # Text alone again, from where it was.
    np.testing.assert_array_equal(second.loader.batch(cursor).tokens, text[19 * 8 :])


REFUSED = {
    "no length of its own": (["train.duration=null"], r"train\.duration: a branch needs its own"),
    "the parent's own name": (["output={parent}"], r"holds a run with another config"),
    "another store under a name": (
        ["data.mixture.plays.store={digits}"],
        r"data\.mixture\.plays: the parent read .*give the new source another name",
    ),
    "another packing": (
        ["data.packing=whole"],
        r"data\.packing: .*packs 'cut', this config 'whole'",
    ),
    "a schedule longer than its own steps": (
        ["schedule.warmup=2 steps", "schedule.decay_fraction=1"],
        r"warm-up 2 \+ decay 1 × 4 = 6 steps is longer than training, 4 steps",
    ),
    "another model": (["model.embed_dim=32"], r"checkpoints/16: .*embed"),
    "another optimizer": (["optimizer.kind=muon"], r"checkpoints/16: .*optimizer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_go_on_from_the_parent_is_refused(
    parent, config, digits, tmp_path, capsys, name
):
    overrides, message = REFUSED[name]
    values = {"parent": Path(parent[0].path).parent, "digits": digits}
    overrides = [override.format(**values) for override in overrides]
    command = ["train", str(config), "--plain", f"output={tmp_path}", "train.duration=4 steps"]
    assert call(*command, *overrides, "--branch-from", f"{parent[0].path}@16") == 2
    said = capsys.readouterr().err
    assert re.search(f"(?s)^maxlm train: .*{message}", said) and "Traceback" not in said, said


# A rate at which no update reaches a float32: a run keeps the weights that it began with.
STILL = ["optimizer.learning_rate=1e-30", "train.duration=10 steps"]


def part(run: RunFolder, step: int, prefix: str) -> dict[str, str]:
    """Checksums of the arrays whose names begin with `prefix`, by the rest of their names."""
    found = checksums(run, step).items()
    return {name.removeprefix(prefix): c for name, c in found if name.startswith(prefix)}


def test_weights_to_start_with_are_the_other_runs_bitwise_and_all_else_is_fresh(
    parent, config, tmp_path, capsys
):
    run, read = parent
    other = Path(shutil.copytree(run.path, tmp_path / "other"))
    command = ["train", str(config), "--plain", f"output={tmp_path}", *STILL]
    command += [f"train.init_from={other}@16"]
    with batches_read() as mine:
        fine = train_here(config, *command[3:], stop_at=9)
    np.testing.assert_array_equal(mine, read[:9])  # the data from its beginning
    assert list(losses(fine)) == list(range(1, 10))
    assert losses(fine)[1] < min(losses(run)[step] for step in range(1, 9))
    shutil.rmtree(other)  # what has begun needs it no more
    assert call(*command) == 0
    assert "continuing from step 8 of 10" in capsys.readouterr().out
    assert Checkpoints(fine.checkpoints).metadata(10)["cursor"] == 10 * 8
    # The weights, not their average; and the average, of equals from here on, begins with them.
    assert part(fine, 10, "params.") == part(run, 16, "params.") != part(run, 16, "average.")
    assert part(fine, 10, "average.") == part(fine, 10, "params.")


def test_weights_of_another_shape_are_refused_with_both_shapes(parent, config, tmp_path, capsys):
    command = ["train", str(config), "--plain", f"output={tmp_path}"]
    command += [f"train.init_from={parent[0].path}"]
    assert call(*command, "model.embed_dim=32") == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and f"{parent[0].checkpoints}/20" in said
    assert "'params.embedding' is stored with shape [257, 16], but the model has [257, 32]" in said
    with devices(1):  # the name is still free
        prepare(load_config(str(config), command[3:]))
