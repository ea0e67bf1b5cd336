"""Storage in trouble says nothing about a checkpoint: retried, raised, and nothing is removed."""

from __future__ import annotations

import errno

import pytest
from checkpoint_state import assert_same, host_state, make_mesh, place, targets

from maxlm import storage
from maxlm.errors import CheckpointError, StorageError, UnreachableError
from maxlm.train import checkpoint_arrays
from maxlm.train.checkpoints import Checkpoints

TROUBLES = [
    TimeoutError("timed out"),
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    OSError(errno.EIO, "Input/output error"),
    ValueError("DEADLINE_EXCEEDED: Error reading manifest.ocdbt"),
    ValueError("UNAVAILABLE: connection refused"),
    ValueError("HTTP response code: 503"),
    ValueError("Error opening d/1: Input/output error [OS error 5: Input/output error]"),
]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(storage, "_RETRY_SECONDS", (0, 0, 0))


def saved(folder, *steps, **options):
    checkpoints = Checkpoints(str(folder), **options)
    for step in steps:
        checkpoints.save(step, place(host_state(step), make_mesh(1, 1)), {"cursor": step})
    checkpoints.wait()
    return checkpoints


def fail(times, error, call):
    left = [times]

    def failing(*arguments):
        if left[0]:
            left[0] -= 1
            raise error
        return call(*arguments)

    return failing


@pytest.mark.parametrize("error", TROUBLES, ids=str)
def test_arrays_that_cannot_be_read_for_now_are_no_damage(tmp_path, monkeypatch, error):
    checkpoints = saved(tmp_path, 10, 20)
    with monkeypatch.context() as patch:
        patch.setattr(
            checkpoint_arrays, "read_arrays", fail(99, error, checkpoint_arrays.read_arrays)
        )
        with pytest.raises(UnreachableError, match="20: cannot be reached") as caught:
            checkpoints.restore(None, targets(make_mesh(1, 1)))
    assert caught.value.exit_code == 75
    saved(tmp_path, 15)
    arrays, _, step = checkpoints.restore(None, targets(make_mesh(1, 1)))
    assert step == 20
    assert_same(arrays, host_state(20))


@pytest.mark.parametrize("error", TROUBLES, ids=str)
def test_a_short_trouble_is_waited_out(tmp_path, monkeypatch, error):
    checkpoints = saved(tmp_path, 10, 20)
    read = fail(2, error, checkpoint_arrays.read_arrays)
    monkeypatch.setattr(checkpoint_arrays, "read_arrays", read)
    assert checkpoints.restore(None, targets(make_mesh(1, 1)))[2] == 20


@pytest.mark.parametrize("error", [TROUBLES[0], TROUBLES[2], PermissionError("no")], ids=str)
def test_a_description_that_cannot_be_read_for_now_is_no_damage(tmp_path, monkeypatch, error):
    checkpoints = saved(tmp_path, 10, 20)

    def trouble(path, mode="rb"):
        with storage.typed_errors(path):
            raise error

    monkeypatch.setattr(storage, "open_file", trouble)
    with pytest.raises(StorageError, match=r"20/maxlm\.json"):
        checkpoints.restore(None, targets(make_mesh(1, 1)))


def test_a_fault_of_which_nothing_is_known_is_no_damage(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, 10, 20)
    read = fail(99, RuntimeError("device lost"), checkpoint_arrays.read_arrays)
    monkeypatch.setattr(checkpoint_arrays, "read_arrays", read)
    with pytest.raises(CheckpointError, match="device lost"):
        checkpoints.restore(None, targets(make_mesh(1, 1)))


def test_a_mistake_in_a_path_is_not_to_be_run_again(tmp_path):
    with pytest.raises(StorageError) as caught:
        storage.read_bytes(tmp_path / "absent")
    assert not isinstance(caught.value, UnreachableError) and caught.value.exit_code == 2


def test_a_damaged_one_that_is_kept_for_good_stays(tmp_path):
    checkpoints = saved(tmp_path, 10, 20, keep_last=2, keep_every_steps=20)
    (tmp_path / "20" / "maxlm.json").write_text("{")
    with pytest.warns(UserWarning, match="continuing from step 10"):
        checkpoints.restore(None, targets(make_mesh(1, 1)))
    checkpoints.save(15, place(host_state(15), make_mesh(1, 1)), {})
    checkpoints.wait()
    assert checkpoints.steps() == [10, 15, 20]


def test_the_first_at_or_after_each_multiple_is_kept(tmp_path):
    checkpoints = saved(tmp_path, *range(7, 85, 7), keep_last=2, keep_every_steps=30)
    assert checkpoints.steps() == [35, 63, 77, 84]
