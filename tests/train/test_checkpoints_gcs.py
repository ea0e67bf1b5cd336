"""Checkpoints in a bucket: the same promises as on a disk, where nothing can be renamed."""

import time
import warnings

import numpy as np
import pytest
from checkpoint_state import assert_same, host_state, make_mesh, place, targets
from killed_save import arrays_of
from test_checkpoints_killed import saving, targets_of

from maxlm import storage
from maxlm.errors import CheckpointError
from maxlm.train import checkpoint_format as layout
from maxlm.train.checkpoints import Checkpoints
from tests.gcs_emulator import bucket  # noqa: F401

ROWS = 8  # the emulator moves about a megabyte a second
TARGETS = targets_of(ROWS)
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def folder(bucket, request):  # noqa: F811
    return f"{bucket}/{request.node.name}/checkpoints"


def test_saved_restored_listed_and_thinned_in_a_bucket(folder):
    checkpoints = Checkpoints(folder, keep_last=2)
    for step in (10, 20, 30):
        state = place(host_state(step), make_mesh(4, 2))
        checkpoints.save(step, state, {"cursor": step}, files={"tokenizer/vocab": b"abc"})
    checkpoints.wait()
    assert checkpoints.steps() == [20, 30]
    arrays, metadata, step = checkpoints.restore(None, targets(make_mesh(2, 1)))
    assert step == 30 and metadata["cursor"] == 30
    assert_same(arrays, host_state(30))
    assert checkpoints.files(30) == {"tokenizer/vocab": b"abc"}
    assert checkpoints.verify(20).good
    checkpoints.close()


def test_a_folder_without_its_commit_marker_is_half_written(folder):
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(step, arrays_of(step, ROWS), {"cursor": step})
    checkpoints.wait()
    storage.remove_file(f"{folder}/2/{layout.COMMIT_FILE}")
    assert checkpoints.steps() == [1]
    with pytest.raises(CheckpointError, match="2: this checkpoint is half-written; complete: 1"):
        Checkpoints(folder).path(2)
    checkpoints.save(2, arrays_of(2, ROWS), {"cursor": 2})
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2] and checkpoints.restore(None, TARGETS)[2] == 2
    checkpoints.close()


def test_damage_in_a_bucket_falls_back_loudly(folder):
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(step, arrays_of(step, ROWS), {"cursor": step})
    checkpoints.wait()
    data = storage.list_names(f"{folder}/2/ocdbt.process_0/d")
    for name in data:
        storage.remove_file(f"{folder}/2/ocdbt.process_0/d/{name}")
    with pytest.warns(UserWarning, match="(?s)continuing from step 1.*cannot be read"):
        assert Checkpoints(folder).restore(None, TARGETS)[2] == 1
    checkpoints.close()


@pytest.mark.slow
def test_a_process_killed_during_saves_to_a_bucket_leaves_only_whole_checkpoints(folder):
    half_written = 0
    for _ in range(3):
        run_and_kill_within_a_save(folder)
        half_written += len(layout.scan(folder).half_written)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            arrays, metadata, step = Checkpoints(folder).restore(None, TARGETS)
        assert metadata["cursor"] == step
        for name, array in arrays_of(step, ROWS).items():
            assert np.asarray(arrays[name]).tobytes() == np.asarray(array).tobytes()
    assert half_written, "each save went on to its end after it was seen half-way"


def run_and_kill_within_a_save(folder):
    """Save until a checkpoint is there whole and another in part, however slow the machine."""
    before = set(layout.scan(folder).half_written)
    deadline = time.monotonic() + 120
    with saving(folder, ROWS):
        while time.monotonic() < deadline:
            found = layout.scan(folder)
            if found.complete and set(found.half_written) - before:
                return
    pytest.fail("no save was found half-way in two minutes")
