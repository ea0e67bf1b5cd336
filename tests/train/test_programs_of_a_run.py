"""One program for every step and one for every save: a run compiles nothing twice."""

import jax
import numpy as np
import pytest

from maxlm.batch import Batch
from maxlm.config.load import load_config
from maxlm.parallel.placement import local_rows, place_batch
from maxlm.train import canonical
from maxlm.train.setup import prepare
from tests.small_run import write_quick_config, write_text_store


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model with biases and a padded vocabulary, on a mesh whose `tensor` axis shards both."""
    folder = tmp_path_factory.mktemp("programs")
    config = write_quick_config(
        folder / "run",
        write_text_store(folder / "store"),
        model={"mlp_bias": True, "attention_bias": "all", "vocab_multiple": 128},
        parallel={"replica": 2, "fsdp": 2, "tensor": 2},
    )
    return prepare(load_config(str(config), []))


def test_a_step_keeps_the_declared_layout_and_compiles_once(run):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 256, (8, 33), dtype=np.int32)
    ones = np.ones((8, 32), np.int32)
    positions = np.tile(np.arange(32, dtype=np.int32), (8, 1))
    host = Batch(tokens[:, :-1], tokens[:, 1:], ones.astype(np.float32), ones, positions)
    with jax.set_mesh(run.mesh):
        state, _ = run.restore_or_begin(lambda text: None)
        batch = place_batch(host, 8, local_rows(8, run.mesh), run.mesh)
        for _ in range(3):
            state, _ = run.train_step(state, batch)
        canonical._converter.cache_clear()
        for _ in range(2):
            canonical.to_canonical(state, run.model)
    for leaf, declared in zip(jax.tree.leaves(state), jax.tree.leaves(run.layout), strict=True):
        assert leaf.sharding.is_equivalent_to(declared.sharding, leaf.ndim)
    assert run.train_step._cache_size() == 1
    kept = canonical._converter.cache_info()
    assert (kept.misses, kept.hits) == (1, 1)
