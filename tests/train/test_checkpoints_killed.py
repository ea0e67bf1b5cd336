"""SIGKILL at any moment of a save, and a disk that fills up: what was saved before is still good."""

import contextlib
import errno
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from killed_save import arrays_of

from maxlm.errors import CheckpointError, StorageError
from maxlm.train import checkpoint_format as layout
from maxlm.train.checkpoints import Checkpoints
from tests.cases import campaign

HERE = Path(__file__).parent


def targets_of(rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    arrays = arrays_of(1, rows)
    return {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in arrays.items()}


TARGETS = targets_of(256)


@contextlib.contextmanager
def saving(folder: Path | str, rows: int = 256) -> Iterator[subprocess.Popen]:
    """A process that saves one checkpoint after another and is killed at the block's end."""
    child = subprocess.Popen(
        [sys.executable, str(HERE / "killed_save.py"), str(folder), str(rows)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(HERE.parents[1]), "XLA_FLAGS": ""},
        text=True,
    )
    try:
        yield child
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()


def run_and_kill(folder: Path, saves: int, delay: float) -> None:
    with saving(folder) as child:
        seen = 0
        for line in child.stdout:
            seen += line.startswith("saving")
            if seen == saves:
                break
        time.sleep(delay)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, campaign(5)])
def test_a_process_killed_during_saves_leaves_only_whole_checkpoints(tmp_path, kills):
    random_moment = random.Random(11)
    half_written = 0
    newest = 0
    for _ in range(kills):
        run_and_kill(tmp_path, saves=2, delay=random_moment.uniform(0, 0.12))
        half_written += len(layout.scan(str(tmp_path)).half_written)
        messages = []
        checkpoints = Checkpoints(str(tmp_path), message=messages.append)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing damaged, so no fallback
            arrays, metadata, step = checkpoints.restore(None, TARGETS)
        assert step > newest and metadata["cursor"] == step
        newest = step
        for name, array in arrays_of(step).items():
            assert np.asarray(arrays[name]).tobytes() == np.asarray(array).tobytes()
        assert all(checkpoints.verify(s).good for s in checkpoints.steps())
    assert half_written, "no kill hit a save: the test proves nothing; make the arrays larger"


def leave_half_written(folder: Path, like: str) -> str:
    """What a kill leaves on a local disk (Orbax's temporary folder) or a bucket (no marker)."""
    name = like.format(step=9)
    (folder / name / "d").mkdir(parents=True)
    (folder / name / "d" / "part").write_bytes(b"x" * 100)
    return name


@pytest.mark.parametrize("like", ["{step}.orbax-checkpoint-tmp", "{step}", "{step}.1"])
def test_half_written_folders_are_ignored_with_a_message_and_removed_at_the_next_save(
    tmp_path, like
):
    messages = []
    checkpoints = Checkpoints(str(tmp_path), message=messages.append)
    checkpoints.save(5, arrays_of(5), {"cursor": 5})
    checkpoints.wait()
    name = leave_half_written(tmp_path, like)
    assert checkpoints.steps() == [5]
    assert checkpoints.restore(None, TARGETS)[2] == 5
    assert f"ignored what a killed save left: {name}" in messages[-1]
    with pytest.raises(CheckpointError, match=r"9: this checkpoint is half-written; complete: 5"):
        checkpoints.restore(9, TARGETS)
    checkpoints.save(9, arrays_of(9), {"cursor": 9})
    checkpoints.wait()
    assert sorted(os.listdir(tmp_path)) == ["5", "9"]
    assert checkpoints.restore(None, TARGETS)[2] == 9
    checkpoints.close()


def test_a_removal_that_is_killed_leaves_nothing_that_seems_whole(tmp_path, monkeypatch):
    from maxlm import storage

    checkpoints = Checkpoints(str(tmp_path), keep_last=1)
    checkpoints.save(1, arrays_of(1), {})
    checkpoints.wait()

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "remove_tree", killed)
    checkpoints.save(2, arrays_of(2), {})
    with pytest.raises(CheckpointError):
        checkpoints.wait()
    assert checkpoints.steps() == [2] and checkpoints.verify(2).good


def assert_full_disk_is_survived(checkpoints: Checkpoints, free) -> None:
    """Save a small step; fail on a large one; read the small one; free room; save again."""
    checkpoints.save(1, arrays_of(1), {"cursor": 1})
    checkpoints.wait()
    large = {"params.large": jax.numpy.arange(16 << 20, dtype=jax.numpy.uint32)}
    checkpoints.save(2, large, {"cursor": 2})
    with pytest.raises(StorageError, match=r"disk is full.*newest complete one is step 1.*again"):
        checkpoints.wait()
    assert checkpoints.steps() == [1]
    assert checkpoints.restore(None, TARGETS)[2] == 1
    free()
    checkpoints.save(3, arrays_of(3), {"cursor": 3})
    checkpoints.wait()
    assert checkpoints.steps() == [1, 3] and checkpoints.restore(None, TARGETS)[2] == 3
    assert sorted(os.listdir(checkpoints.folder)) == ["1", "3"]
    checkpoints.close()


def test_a_disk_that_fills_up_during_a_save_leaves_the_ones_before(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        assert_full_disk_is_survived(Checkpoints(str(tmp_path / "run")), free=lambda: None)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_limit_on_file_size_is_a_full_disk_too(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def free() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    resource.setrlimit(resource.RLIMIT_FSIZE, (30 << 20, hard))
    try:
        assert_full_disk_is_survived(Checkpoints(str(tmp_path / "run")), free)
    finally:
        free()
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("broken", ["steps", "_remove_half_written"])
def test_a_failed_save_is_told_even_where_looking_at_what_is_left_fails(
    tmp_path, monkeypatch, broken
):
    checkpoints = Checkpoints(str(tmp_path / "run"))
    checkpoints.save(1, arrays_of(1, 8), {"cursor": 1})
    checkpoints.wait()
    begun, written = threading.Event(), checkpoints._writer.wait

    def fill_up() -> None:
        begun.wait()
        written()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail() -> None:
        raise StorageError("the folder cannot be reached")

    monkeypatch.setattr(checkpoints._writer, "wait", fill_up)
    checkpoints.save(2, arrays_of(2, 8), {"cursor": 2})
    monkeypatch.setattr(checkpoints, broken, fail)
    begun.set()
    with pytest.raises(StorageError, match=r"2: the disk is full.*this checkpoint was not saved"):
        checkpoints.wait()
