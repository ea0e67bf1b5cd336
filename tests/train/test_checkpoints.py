"""What is saved comes back, on any mesh; what does not fit is refused; old ones go in time."""

import asyncio
import json
import logging
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_state import assert_same, host_state, make_mesh, place, targets
from jax.sharding import NamedSharding, PartitionSpec

from maxlm.errors import CheckpointError, StorageError
from maxlm.train import checkpoint_format as layout
from maxlm.train import quantities
from maxlm.train.checkpoints import Checkpoints

METADATA = {"cursor": 4096, "config": {"model": {"width": 16}}, "tokenizer": "ab12"}


@pytest.fixture
def messages():
    return []


@pytest.fixture
def checkpoints(tmp_path, messages):
    with_messages = Checkpoints(str(tmp_path / "checkpoints"), message=messages.append)
    yield with_messages
    with_messages.close()


@pytest.fixture
def state():
    return place(host_state(), make_mesh(4, 2))


def test_arrays_metadata_and_files_come_back_as_they_were(checkpoints, state):
    files = {"tokenizer/vocab.txt": b"a\nb\n", "notes": b""}
    checkpoints.save(20, state, METADATA, files=files)
    arrays, metadata, step = checkpoints.restore(None, targets(make_mesh(4, 2)))
    assert step == 20 and checkpoints.steps() == [20]
    assert_same(arrays, host_state())
    assert metadata == METADATA | {"step": 20, "format_version": 1}
    assert checkpoints.metadata(20) == metadata
    assert checkpoints.files(20) == files
    for name, target in targets(make_mesh(4, 2)).items():
        assert arrays[name].sharding == target.sharding


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 4), (8, 1), (2, 4), (1, 8)])
def test_saved_on_eight_devices_restores_bitwise_on_another_mesh(checkpoints, state, shape):
    checkpoints.save(1, state, METADATA)
    arrays, _, _ = checkpoints.restore(1, targets(make_mesh(*shape)))
    assert_same(arrays, host_state())
    assert len(arrays["params.embedding.table"].sharding.device_set) == shape[0] * shape[1]


def test_saved_on_one_device_restores_on_eight(checkpoints):
    checkpoints.save(1, place(host_state(), make_mesh(1, 1)), METADATA)
    arrays, _, _ = checkpoints.restore(1, targets(make_mesh(2, 4)))
    assert_same(arrays, host_state())


def test_targets_without_a_sharding_go_to_the_first_device(checkpoints, state):
    checkpoints.save(1, state, METADATA)
    plain = {n: jax.ShapeDtypeStruct(v.shape, v.dtype) for n, v in state.items()}
    arrays, _, _ = checkpoints.restore(1, plain)
    assert_same(arrays, host_state())


@pytest.mark.parametrize("shape", [(1, 1), (4, 2)])
def test_arrays_may_be_donated_and_overwritten_right_after_save_returns(checkpoints, shape):
    mesh = make_mesh(*shape)
    big = np.random.default_rng(7).standard_normal((8, 512, 256)).astype(np.float32)
    sharding = NamedSharding(mesh, PartitionSpec("fsdp", None, "tensor"))
    array = jax.device_put(big, sharding)
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    checkpoints.save(1, {"params.x": array}, {})
    for _ in range(5):
        array = overwrite(array)
    array.block_until_ready()
    target = {"params.x": jax.ShapeDtypeStruct(big.shape, big.dtype, sharding=sharding)}
    arrays, _, _ = checkpoints.restore(1, target)
    assert np.asarray(arrays["params.x"]).tobytes() == big.tobytes()


def test_only_empty_arrays_can_be_saved_too(checkpoints):
    empty = jax.device_put(np.zeros((0, 3), np.float32))
    checkpoints.save(1, {"variables.none": empty}, METADATA)
    arrays, _, _ = checkpoints.restore(1, {"variables.none": empty})
    assert arrays["variables.none"].shape == (0, 3)


def test_weights_alone_can_be_read_from_a_whole_state(checkpoints, state):
    checkpoints.save(1, state, METADATA)
    wanted = {n: t for n, t in targets(make_mesh(2, 1)).items() if n.startswith("params.")}
    arrays, _, _ = checkpoints.restore(1, wanted, partial=True)
    assert_same(arrays, {n: v for n, v in host_state().items() if n.startswith("params.")})


def change(name, **changes):
    def apply(wanted):
        old = wanted[name]
        made = {"shape": old.shape, "dtype": old.dtype} | changes
        wanted[name] = jax.ShapeDtypeStruct(**made)

    return apply


@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (
            lambda w: w.update({"params.blocks.mlp.kernels": w["params.blocks.mlp.kernel"]}),
            "'params.blocks.mlp.kernels' is not in the checkpoint.*'params.blocks.mlp.kernel'",
        ),
        (lambda w: w.pop("optimizer.count"), "'optimizer.count' is in the checkpoint, but not"),
        (
            change("params.blocks.norm.scale", shape=(4, 16)),
            r"'params.blocks.norm.scale' is stored with shape \[3, 16\].* has \[4, 16\]",
        ),
        (
            change("optimizer.mu.blocks.mlp.kernel", dtype=jnp.float32),
            "'optimizer.mu.blocks.mlp.kernel' is stored as bfloat16.*float32.*nothing is cast",
        ),
        (
            change("params.embedding.table", dtype=jnp.int32),
            "'params.embedding.table' is stored as float32, but the model has int32",
        ),
    ],
)
def test_arrays_of_another_model_are_refused_by_name(checkpoints, state, alter, said):
    checkpoints.save(1, state, METADATA)
    checkpoints.save(2, state, METADATA)
    wanted = targets(make_mesh(4, 2))
    alter(wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a config mistake never falls back to an older checkpoint
        with pytest.raises(CheckpointError, match=f"(?s){said}"):
            checkpoints.restore(None, wanted)


def test_no_checkpoint_at_all_and_a_missing_step_say_what_there_is(checkpoints, state):
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        checkpoints.restore(None, targets(make_mesh(1, 1)))
    checkpoints.save(5, state, METADATA)
    checkpoints.wait()
    with pytest.raises(CheckpointError, match=r"7: this checkpoint does not exist; complete: 5"):
        checkpoints.restore(7, targets(make_mesh(1, 1)))


@pytest.mark.parametrize(
    ("arrays", "metadata", "said"),
    [
        ({"x": np.zeros(3)}, {}, "'x' is a ndarray, not a jax.Array"),
        ({"rng": jax.random.key(0)}, {}, "'rng' has dtype key"),
        ({}, {"path": object()}, "metadata must be plain JSON"),
    ],
)
def test_what_cannot_be_saved_is_refused_at_once(checkpoints, arrays, metadata, said):
    with pytest.raises(CheckpointError, match=said):
        checkpoints.save(1, arrays, metadata)
    assert checkpoints.steps() == []


def test_a_donated_array_is_refused_by_name(checkpoints):
    array = jnp.ones(1 << 12)
    jax.jit(lambda x: x + 1, donate_argnums=0)(array)
    with pytest.raises(CheckpointError, match=r"'params.x' was donated"):
        checkpoints.save(1, {"params.x": array}, {})


def save_steps(checkpoints, steps):
    for step in steps:
        checkpoints.save(step, {"params.x": jnp.full(4, step)}, {"cursor": step})
    checkpoints.wait()


def test_the_newest_are_kept_and_every_nth(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), keep_last=2, keep_every_steps=30)
    save_steps(checkpoints, range(10, 110, 10))
    assert checkpoints.steps() == [30, 60, 90, 100]
    assert len(list(tmp_path.iterdir())) == 4
    checkpoints.close()


def test_an_old_checkpoint_goes_only_when_the_new_one_is_complete(tmp_path, monkeypatch):
    checkpoints = Checkpoints(str(tmp_path), keep_last=1)
    save_steps(checkpoints, [1])
    seen = []
    real = layout.encode

    def encode(description):
        seen.append(layout.scan(str(tmp_path)).complete)
        return real(description)

    monkeypatch.setattr(layout, "encode", encode)
    save_steps(checkpoints, [2])
    assert list(seen[0]) == [1] and checkpoints.steps() == [2]
    checkpoints.close()


def test_going_back_to_an_older_step_leaves_later_ones_alone(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), keep_last=2)
    save_steps(checkpoints, [10, 20])
    save_steps(checkpoints, [12, 14])
    assert checkpoints.steps() == [12, 14, 20]
    checkpoints.close()


def test_the_same_step_with_the_same_content_is_left_as_it_is(checkpoints, state, messages):
    checkpoints.save(3, state, METADATA)
    checkpoints.wait()
    before = checkpoints.description(3).saved_at
    checkpoints.save(3, state, METADATA)
    checkpoints.wait()
    assert checkpoints.description(3).saved_at == before
    assert "step 3 is saved already" in messages[-1]


def test_the_same_step_with_other_content_replaces_the_first(checkpoints, tmp_path):
    for value in (1, 2, 3):
        checkpoints.save(3, {"params.x": jnp.full(4, value)}, {"value": value})
        checkpoints.wait()
        assert checkpoints.metadata(3)["value"] == value
        assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    target = {"params.x": jax.ShapeDtypeStruct((4,), jnp.int32)}
    arrays, metadata, _ = checkpoints.restore(None, target)
    assert arrays["params.x"].tolist() == [3] * 4 and metadata["value"] == 3


def test_a_save_is_told_once_when_it_is_complete(tmp_path, state):
    told: list[tuple[str, bool]] = []
    marker = tmp_path / "1" / "commit_success.txt"
    checkpoints = Checkpoints(str(tmp_path), message=lambda s: told.append((s, marker.exists())))
    checkpoints.save(1, state, METADATA)
    assert checkpoints.latest == 1 and checkpoints.path(1).endswith("/1")
    checkpoints.wait()
    (text, complete), size = told[0], sum(a.nbytes for a in state.values())
    assert len(told) == 1 and complete
    assert text.startswith(f"step 1: saved {tmp_path}/1 ({quantities.size(size)}, ")


def test_a_write_that_is_cancelled_within_orbax_is_no_save(tmp_path, state, monkeypatch):
    async def cancelled(*arguments):
        raise asyncio.CancelledError

    told: list[str] = []
    checkpoints = Checkpoints(str(tmp_path), message=told.append)
    checkpoints.save(1, state, METADATA)
    checkpoints.wait()
    monkeypatch.setattr("maxlm.train.checkpoint_arrays._write_files", cancelled)
    checkpoints.save(2, state, METADATA)
    with pytest.raises(CheckpointError, match=r"/2: cannot write: .*cancelled.*newest .* step 1"):
        checkpoints.wait()
    assert checkpoints.steps() == [1] and not any("step 2: saved" in text for text in told)


def test_a_synchronous_save_is_complete_on_return(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), asynchronous=False)
    checkpoints.save(1, {"params.x": jnp.ones(3)}, {})
    assert (tmp_path / "1" / "commit_success.txt").exists()
    checkpoints.close()


def test_a_newer_format_is_refused_kindly_and_not_passed_over(checkpoints, state):
    save_steps(checkpoints, [1, 2])
    path = f"{checkpoints.path(2)}/{layout.DESCRIPTION_FILE}"
    with open(path) as file:
        body = json.load(file)["body"]
    body["format_version"] = 2
    with open(path, "w") as file:
        json.dump({"sha256": layout._digest(body), "body": body}, file)
    target = {"params.x": jax.ShapeDtypeStruct((4,), jnp.int32)}
    with pytest.raises(CheckpointError, match=r"format 2.*reads formats up to 1; upgrade maxlm"):
        checkpoints.restore(None, target)


def test_an_older_format_is_read_through_its_upgrade(checkpoints, monkeypatch):
    save_steps(checkpoints, [1])
    monkeypatch.setattr(layout, "FORMAT_VERSION", 2)
    renamed = lambda body: body | {"metadata": {"position": body["metadata"]["cursor"]}}  # noqa: E731
    monkeypatch.setitem(layout.UPGRADES, 1, renamed)
    assert checkpoints.metadata(1)["position"] == 1


def test_storage_that_cannot_hold_checkpoints_is_refused():
    with pytest.raises(CheckpointError, match=r"not to s3://.*mount the bucket"):
        Checkpoints("s3://bucket/run/checkpoints")


def test_a_folder_that_cannot_be_written_is_a_typed_error(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    checkpoints = Checkpoints(str(blocker / "checkpoints"))
    with pytest.raises(StorageError, match=r"is a file, not a folder.*there is none before it"):
        checkpoints.save(1, {"params.x": jnp.ones(3)}, {})
    checkpoints.close()


def test_preparing_ahead_leaves_nothing_to_compile_for_the_first_save(checkpoints, state):
    checkpoints.prepare(targets(make_mesh(4, 2))).join()
    compiled = []

    def listen(event, _, **details):
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        checkpoints.save(1, state, METADATA)
        checkpoints.wait()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []


def test_only_what_others_wrote_to_the_log_of_asyncio_is_shown(checkpoints, state, caplog):
    """A failed save's arrays fail one by one in futures that TensorStore sets and nobody awaits."""
    checkpoints.save(1, state, METADATA)
    log = logging.getLogger("asyncio")
    log.error("Future exception was never retrieved", exc_info=ValueError("No space left"))
    try:
        raise ValueError("a bug of ours")
    except ValueError:
        log.error("Task exception was never retrieved", exc_info=True)
    assert [record.message for record in caplog.records if record.name == "asyncio"] == [
        "Task exception was never retrieved"
    ]


def test_orbax_is_imported_only_when_it_is_needed():
    code = "import sys, maxlm.train.checkpoints; assert 'orbax.checkpoint' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
