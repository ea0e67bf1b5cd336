"""Every kind of damage to the files is found, named, and answered by the checkpoint before."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from checkpoint_state import assert_same, host_state, make_mesh, place, targets

from maxlm import storage
from maxlm.errors import CheckpointError, UnreachableError
from maxlm.train.checkpoints import Checkpoints

# A read that Orbax gives up leaves others of its own running; their loop closes under them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(str(folder), keep_last=5)
    for step in (10, 20):
        state = place(host_state(step), make_mesh(4, 2))
        checkpoints.save(step, state, {"cursor": step}, files={"tokenizer/vocab": b"abc"})
    checkpoints.close()
    return folder


@pytest.fixture
def run(saved, tmp_path):
    import shutil

    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def data_files(folder: Path) -> list[Path]:
    return sorted((p for p in folder.rglob("d/*") if p.is_file()), key=lambda p: -p.stat().st_size)


def flip_in_values(folder: Path) -> None:
    """One bit of one value of the embedding table, wherever Orbax put it."""
    needle = (
        np.asarray(host_state(20)["params.embedding.table"]).reshape(256, 2, 32)[:64, 0].tobytes()
    )
    for path in data_files(folder):
        content = bytearray(path.read_bytes())
        at = content.find(needle)
        if at >= 0:
            content[at + 101] ^= 4
            path.write_bytes(content)
            return
    raise AssertionError("the values are not stored plainly: adapt this test to the new store")


def truncate_largest(folder: Path) -> None:
    largest = data_files(folder)[0]
    os.truncate(largest, largest.stat().st_size // 2)


def truncate_second_process(folder: str) -> None:
    """Damage what the second of several processes wrote; the first can read its own."""
    for path in data_files(Path(folder) / "ocdbt.process_1"):
        os.truncate(path, 10)


def delete_data(folder: Path) -> None:
    for path in data_files(folder):
        path.unlink()


def overwrite(name: str, content: str):
    def damage(folder: Path) -> None:
        (folder / name).write_text(content)

    return damage


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def change_description(folder: Path) -> None:
    path = folder / "maxlm.json"
    path.write_text(path.read_text().replace('"cursor": 20', '"cursor": 21'))


def swap_rows_on_disk(folder: Path) -> None:
    """Valid files with other content: the damage that only a checksum of values can see."""
    other = host_state(20)
    other["params.embedding.table"][[3, 5]] = other["params.embedding.table"][[5, 3]]
    scratch = Checkpoints(str(folder.parent.parent / "scratch"))
    state = place(other, make_mesh(4, 2))
    scratch.save(20, state, {"cursor": 20}, files={"tokenizer/vocab": b"abc"})
    scratch.close()
    description = (folder / "maxlm.json").read_bytes()
    import shutil

    shutil.rmtree(folder)
    shutil.copytree(folder.parent.parent / "scratch" / "20", folder)
    (folder / "maxlm.json").write_bytes(description)


DAMAGES = {
    "flipped bit": (flip_in_values, "'params.embedding.table'.*values have changed"),
    "swapped rows": (swap_rows_on_disk, "'params.embedding.table'.*values have changed"),
    "truncated data": (truncate_largest, "cannot be read|values have changed"),
    "missing data": (delete_data, "cannot be read"),
    "broken manifest": (overwrite("manifest.ocdbt", "nonsense"), "cannot be read"),
    "missing manifest": (remove("manifest.ocdbt"), "cannot be read"),
    "broken _METADATA": (overwrite("_METADATA", '{"tree_metadata": '), "cannot be read"),
    "broken description": (overwrite("maxlm.json", "{"), "maxlm.json is not readable"),
    "odd description": (overwrite("maxlm.json", "[]"), "maxlm.json is not readable"),
    "missing description": (remove("maxlm.json"), "maxlm.json: no such file"),
    "changed description": (change_description, "maxlm.json does not match its own hash"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_newest_falls_back_loudly_to_the_one_before(run, kind):
    damage, said = DAMAGES[kind]
    damage(run / "20")
    messages = []
    checkpoints = Checkpoints(str(run), message=messages.append)
    wanted = targets(make_mesh(2, 2))
    with pytest.warns(UserWarning, match=f"(?s)continuing from step 10.*20.*({said})"):
        arrays, metadata, step = checkpoints.restore(None, wanted)
    assert step == 10 and metadata["cursor"] == 10
    assert_same(arrays, host_state(10))
    assert "continuing from step 10" in messages[-1]
    with pytest.raises(CheckpointError, match=f"(?s)no good checkpoint.*20.*({said})"):
        checkpoints.restore(20, wanted)  # asked for by number: no substitute
    report = checkpoints.verify(20)
    assert not report.good and checkpoints.verify(10).good


def test_every_flipped_byte_of_the_array_files_is_either_found_or_harmless(run):
    checkpoints = Checkpoints(str(run))
    wanted = targets(make_mesh(1, 1))
    random = np.random.default_rng(5)
    files = [p for p in (run / "20").rglob("*") if p.is_file() and p.suffix != ".txt"]
    for _ in range(25):
        path = files[random.integers(len(files))]
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        try:
            arrays, _, _ = checkpoints.restore(20, wanted)
            assert_same(arrays, host_state(20))
        except CheckpointError as error:
            assert str(run / "20") in str(error)
        path.write_bytes(whole)


def test_without_orbax_tree_metadata_the_values_are_still_whole(run):
    remove("_METADATA")(run / "20")
    arrays, _, step = Checkpoints(str(run)).restore(None, targets(make_mesh(1, 1)))
    assert step == 20
    assert_same(arrays, host_state(20))


def test_when_none_is_good_each_is_listed_with_its_reason(run):
    flip_in_values(run / "20")
    truncate_largest(run / "10")
    checkpoints = Checkpoints(str(run))
    with pytest.raises(CheckpointError) as caught:
        checkpoints.restore(None, targets(make_mesh(1, 1)))
    said = str(caught.value)
    assert "no good checkpoint" in said and "backup" in said
    assert f"{run}/20" in said and f"{run}/10" in said and "values have changed" in said


def test_verify_names_exactly_the_damaged_array(run):
    flip_in_values(run / "20")
    (problem,) = Checkpoints(str(run)).verify(20).problems
    assert problem.startswith("array 'params.embedding.table': its checksum is")


def test_a_damaged_small_file_is_found(run):
    (run / "20" / "files" / "tokenizer" / "vocab").write_bytes(b"abd")
    checkpoints = Checkpoints(str(run))
    assert checkpoints.verify(20).problems == ["file 'tokenizer/vocab' does not match its hash"]
    with pytest.raises(CheckpointError, match="file 'tokenizer/vocab' does not match its hash"):
        checkpoints.files(20)


def test_a_damaged_checkpoint_is_replaced_when_its_step_is_saved_again(run):
    flip_in_values(run / "20")
    messages = []
    checkpoints = Checkpoints(str(run), message=messages.append)
    with pytest.warns(UserWarning, match="continuing from step 10"):
        checkpoints.restore(None, targets(make_mesh(1, 1)))
    state = place(host_state(20), make_mesh(2, 1))
    checkpoints.save(20, state, {"cursor": 20})  # the very values that were damaged
    checkpoints.wait()
    arrays, _, step = checkpoints.restore(None, targets(make_mesh(1, 1)))
    assert step == 20
    assert_same(arrays, host_state(20))
    assert sorted(os.listdir(run)) == ["10", "20.1"]
    checkpoints.close()


def test_a_damaged_later_checkpoint_goes_once_a_new_one_is_complete(run):
    flip_in_values(run / "20")
    messages = []
    checkpoints = Checkpoints(str(run), message=messages.append)
    with pytest.warns(UserWarning):
        checkpoints.restore(None, targets(make_mesh(1, 1)))
    checkpoints.save(15, place(host_state(15), make_mesh(1, 1)), {"cursor": 15})
    checkpoints.wait()
    assert checkpoints.steps() == [10, 15]
    assert any("removed the damaged checkpoint of step 20" in m for m in messages)
    checkpoints.close()


def test_storage_that_cannot_be_reached_does_not_throw_good_work_away(run, monkeypatch):
    from maxlm.train import checkpoint_arrays

    def unreachable(*_):
        raise ValueError("UNAVAILABLE: connection refused")

    monkeypatch.setattr(checkpoint_arrays, "read_arrays", unreachable)
    monkeypatch.setattr(storage, "_RETRY_SECONDS", (0, 0, 0))
    with pytest.raises(UnreachableError, match="20: cannot be reached"):
        Checkpoints(str(run)).restore(None, targets(make_mesh(1, 1)))


def test_a_description_is_plain_json_that_a_person_can_read(run):
    body = json.loads((run / "20" / "maxlm.json").read_text())["body"]
    assert body["format_version"] == 1 and body["step"] == 20
    assert body["arrays"]["params.embedding.table"]["shape"] == [256, 64]
    assert jax.numpy.dtype(body["arrays"]["optimizer.mu.blocks.mlp.kernel"]["dtype"]).itemsize == 2
