"""What a checkpoint holds of a state shows neither mesh nor vocabulary padding."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from maxlm.config.schema import ModelConfig, OptimizerConfig, ParallelConfig
from maxlm.model.definition import define
from maxlm.parallel.mesh import make_mesh
from maxlm.train.canonical import canonical_targets, from_canonical, to_canonical
from maxlm.train.optimizer import make_optimizer
from maxlm.train.state import abstract_state

VOCAB, WIDTH = 101, 32
SHAPE = {
    "vocab_size": VOCAB,
    "num_layers": 2,
    "embed_dim": WIDTH,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "mlp_dim": 48,
    "tie_embeddings": False,
    "positions": "learned",
    "max_length": 128,  # as many rows as the padded table has, and no vocabulary
}
MESHES = [{"fsdp": 1}, {"fsdp": 8}, {"fsdp": 2, "tensor": 2}, {"replica": 2, "tensor": 2}]


def parts(sizes=None, kind="adamw", average=True, **variant):
    """(model, layout of its state) on a mesh."""
    sizes = sizes or {"fsdp": 1}
    parallel = ParallelConfig(**({"fsdp": 1} | sizes))
    mesh = make_mesh(parallel, jax.devices()[: int(np.prod(list(sizes.values())))])
    model = define(ModelConfig(**(SHAPE | variant)))
    optimizer = make_optimizer(OptimizerConfig(kind=kind, learning_rate=1e-3), model.parameters)
    return model, abstract_state(model, optimizer, average=average, mesh=mesh)


def values_of(targets, seed=0):
    """A checkpoint's content: other values in every array."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=targets[name].shape).astype(targets[name].dtype)
        for name in sorted(targets)
    }


def restored(values, model, layout):
    """The state of a checkpoint, read into the places that the model asks for."""
    targets = canonical_targets(layout, model)
    arrays = {n: jax.device_put(v, targets[n].sharding) for n, v in values.items()}
    return from_canonical(arrays, layout, model)


def assert_same(arrays, values):
    assert arrays.keys() == values.keys()
    for name, value in values.items():
        assert arrays[name].dtype == value.dtype, name
        np.testing.assert_array_equal(arrays[name], value, err_msg=name)


def has_vocabulary(name):
    return name.endswith((".embedding", ".head"))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_names_are_those_of_the_parameters_and_no_vocabulary_is_padded(kind):
    model, layout = parts(kind=kind)
    targets = canonical_targets(layout, model)
    for group in ("params", "average"):
        found = {name for name in targets if name.startswith(f"{group}.")}
        assert found == {f"{group}.{name}" for name in model.parameters}
    rest = {name for name in targets if not name.startswith(("params.", "average."))}
    assert {"step", "skipped"} <= rest
    assert all(name.startswith("optimizer.") for name in rest - {"step", "skipped"})
    # Both of Adam's moments of both tables, and the tables themselves twice.
    tables = [name for name in targets if has_vocabulary(name)]
    assert len(tables) == 8
    assert {targets[name].shape for name in tables} == {(VOCAB, WIDTH)}
    assert targets["params.positions"].shape == (128, WIDTH)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_state_comes_back_bit_by_bit_on_every_mesh(sizes, kind):
    model, layout = parts(sizes, kind)
    values = values_of(canonical_targets(layout, model))
    state = restored(values, model, layout)
    wanted = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), layout)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), state) == wanted
    assert state.params["embedding"].shape == (128, WIDTH)
    assert not np.any(state.params["embedding"][VOCAB:])  # padding is zeros
    targets = canonical_targets(layout, model)
    for _ in range(2):  # the state is there after it was saved
        arrays = to_canonical(state, model)
        assert_same(arrays, values)
        for name, array in arrays.items():
            assert array.sharding.is_equivalent_to(targets[name].sharding, array.ndim), name


def test_another_padding_and_mesh_read_the_same_checkpoint():
    model, layout = parts()
    values = values_of(canonical_targets(layout, model))
    first = to_canonical(restored(values, model, layout), model)
    for multiple, rows in ((1, 101), (64, 128), (256, 256)):
        other, its_layout = parts(
            {"fsdp": 4} if multiple == 1 else {"fsdp": 2, "tensor": 2}, vocab_multiple=multiple
        )
        state = restored({n: np.asarray(a) for n, a in first.items()}, other, its_layout)
        assert state.params["head"].shape == (rows, WIDTH)
        assert_same(to_canonical(state, other), values)


def test_a_vocabulary_without_padding_is_passed_on_as_it_is():
    model, layout = parts(vocab_size=128)
    values = values_of(canonical_targets(layout, model))
    assert values["params.embedding"].shape == (128, WIDTH)
    state = restored(values, model, layout)
    arrays = to_canonical(state, model)
    assert arrays["params.embedding"] is state.params["embedding"]


def test_a_state_without_an_average_has_none_to_save():
    model, layout = parts(average=False)
    assert not any(name.startswith("average") for name in canonical_targets(layout, model))
