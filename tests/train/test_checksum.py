"""The checksum sees every change and no layout."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_state import host_state, make_mesh, place
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from maxlm.errors import CheckpointError
from maxlm.train import checksum
from maxlm.train.checksum import (
    checksum_on_host,
    checksums,
    compile_checksums,
    dispatch_checksums,
    read_checksums,
)


def of(array) -> str:
    return checksums({"x": jnp.asarray(array)})["x"]


@pytest.mark.parametrize(
    "dtype",
    ["float32", "bfloat16", "float16", "float8_e4m3fn", "int8", "uint32", "bool", "complex64"],
)
def test_device_and_host_agree_for_every_dtype(dtype):
    values = np.random.default_rng(0).standard_normal((7, 5, 3)) * 4
    array = jnp.asarray(values.astype(np.float32)).astype(dtype)
    assert of(array) == checksum_on_host(np.asarray(array))


def test_device_and_host_agree_for_eight_byte_dtypes():
    with jax.enable_x64(True):
        for dtype in (np.float64, np.int64, np.complex128):
            array = np.random.default_rng(1).standard_normal((5, 4)).astype(dtype)
            assert of(array) == checksum_on_host(array)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (1, 1, 1)])
def test_scalars_and_empty_arrays_have_one(shape):
    array = np.full(shape, 3.5, np.float32)
    assert of(array) == checksum_on_host(array)


def test_sharding_does_not_show():
    state = host_state()
    wanted = {name: checksum_on_host(np.asarray(value)) for name, value in state.items()}
    for shape in [(1, 1), (8, 1), (4, 2), (2, 4), (1, 8), (2, 1)]:
        assert checksums(place(state, make_mesh(*shape))) == wanted


def test_arrays_on_different_devices_go_in_one_call():
    first, last = jax.devices()[0], jax.devices()[-1]
    x = np.arange(12.0, dtype=np.float32)
    arrays = {
        "first": jax.device_put(x, first),
        "last": jax.device_put(x, last),
        "all": jax.device_put(x, NamedSharding(make_mesh(4, 1), PartitionSpec("fsdp"))),
    }
    assert set(checksums(arrays).values()) == {checksum_on_host(x)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_every_single_flipped_bit_is_seen(dtype):
    array = np.random.default_rng(2).standard_normal((4, 3)).astype(np.float32) * 9
    array = np.asarray(jnp.asarray(array).astype(dtype))
    seen = {checksum_on_host(array)}
    for byte, bit in itertools.product(range(array.nbytes), range(8)):
        damaged = bytearray(array.tobytes())
        damaged[byte] ^= 1 << bit
        seen.add(checksum_on_host(np.frombuffer(damaged, array.dtype).reshape(array.shape)))
    assert len(seen) == 1 + array.nbytes * 8


def test_swapped_elements_rows_and_blocks_are_seen():
    array = np.random.default_rng(3).standard_normal((2, 6, 8)).astype(np.float32)
    flat = array.reshape(-1)
    seen = {checksum_on_host(array)}
    pairs = list(itertools.combinations(range(flat.size), 2))
    for i, j in pairs:
        other = flat.copy()
        other[[i, j]] = other[[j, i]]
        seen.add(checksum_on_host(other.reshape(array.shape)))
    for i, j in itertools.combinations(range(6), 2):
        other = array.copy()
        other[:, [i, j]] = other[:, [j, i]]
        seen.add(checksum_on_host(other))
    seen.add(checksum_on_host(array[::-1].copy()))
    assert len(seen) == 1 + len(pairs) + 15 + 1


def test_constant_arrays_of_many_lengths_differ():
    seen = [checksum_on_host(np.full(n, v, np.float32)) for n in range(1, 400) for v in (0, 1)]
    assert len(set(seen)) == len(seen)


def test_positions_beyond_the_index_range_still_have_keys_of_their_own(monkeypatch):
    monkeypatch.setattr(checksum, "_INNER_LIMIT", 64)
    monkeypatch.setattr(checksum, "_program", checksum._program.__wrapped__)
    x = np.arange(4 * 8 * 16, dtype=np.float32).reshape(4, 8, 16)
    assert checksum._split(x.shape) == 2  # 16 positions inside, 32 outside
    assert of(x) == checksum_on_host(x)
    inner, outer = np.meshgrid(np.arange(16, dtype=np.uint32), np.arange(32, dtype=np.uint32))
    with np.errstate(over="ignore"):
        first, second = checksum._keys(inner, outer, np.uint32)
    assert len(set(zip(first.ravel().tolist(), second.ravel().tolist(), strict=True))) == x.size


def test_an_array_of_more_than_two_to_the_32_elements_is_split_without_overflow():
    shape = (80, 16384, 8192)  # 10.7e9 elements
    split = checksum._split(shape)
    assert split == 1 and np.prod(shape[split:]) <= 2**32
    compiled = jax.jit(checksum._lanes).lower(jax.ShapeDtypeStruct(shape, jnp.bfloat16))
    assert "xi64>" not in compiled.as_text()


def test_lanes_key_multipliers_have_the_parity_that_the_proof_needs():
    assert all(m % 2 for m in (*checksum._INNER, *checksum._MIX))
    assert checksum._OUTER[0] % 2 == 1 and checksum._OUTER[1] % 2 == 0


def test_differing_replicas_are_named():
    mesh = make_mesh(4, 1)
    replicated = NamedSharding(mesh, PartitionSpec())
    copies = [
        jax.device_put(np.full(3, i == 2, np.float32), d) for i, d in enumerate(mesh.devices.flat)
    ]
    torn = jax.make_array_from_single_device_arrays((3,), replicated, copies)
    whole = jax.device_put(np.ones(3, np.float32), replicated)
    assert read_checksums(dispatch_checksums({"torn": torn, "whole": whole}))[1] == ["torn"]


def test_arrays_may_be_donated_right_after_dispatch():
    update = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    x = np.random.default_rng(4).standard_normal((256, 256)).astype(np.float32)
    array = jax.device_put(x, NamedSharding(make_mesh(8, 1), PartitionSpec("fsdp")))
    pending = dispatch_checksums({"x": array})
    update(array).block_until_ready()
    assert read_checksums(pending)[0]["x"] == checksum_on_host(x)


def test_compiling_ahead_serves_the_first_call():
    compiled = []
    on_device = SingleDeviceSharding(jax.devices()[3])
    array = jax.device_put(np.ones((17, 3), np.float32), on_device)

    def listen(event, _, **details):
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        compile_checksums({"x": jax.ShapeDtypeStruct((17, 3), jnp.float32, sharding=on_device)})
        assert len(compiled) == 1
        checksums({"x": array})
        assert len(compiled) == 1
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_the_value_never_changes_between_releases():
    # Checkpoints on disk hold these: another value would make every one of them look damaged.
    assert checksum_on_host(np.arange(6, dtype=np.float32).reshape(2, 3)) == "6a9329a5650185c2"
    assert checksum_on_host(np.arange(6, dtype=np.float64).reshape(2, 3)) == "87f23cff3107530b"
    assert checksum_on_host(np.array([True, False, True])) == "39c93056f5ac1a22"


def test_random_keys_are_refused_by_name():
    with pytest.raises(CheckpointError, match=r"'rng' has dtype key.*key_data"):
        checksums({"rng": jax.random.key(0)})
