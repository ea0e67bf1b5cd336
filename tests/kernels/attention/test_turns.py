"""How often loops over blocks of keys are said to run, against the blocks that they find."""

import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.kernels.attention.blocks import cut_keys, cut_queries, visible
from maxlm.kernels.attention.turns import expected_turns

SIZE, LENGTH = 4, 64


def found(query_index, key_index, window):
    """Blocks of keys that each block of queries goes over, in a row of one document."""
    query = jnp.zeros((1, len(query_index), 1, 8))
    key = jnp.zeros((1, len(key_index), 1, 8))
    queries = cut_queries(query, 1, jnp.array(query_index), jnp.ones(query.shape[:2], int), SIZE)
    keys = cut_keys(key, key, jnp.array(key_index), jnp.ones(key.shape[:2], int), SIZE)
    first, last = visible(queries, keys, window)
    return np.array(last - first)


@pytest.mark.parametrize("window", [None, 1, 5, 6, 20])
def test_of_whole_rows(window):
    row = np.arange(LENGTH)
    said = expected_turns(LENGTH // SIZE, SIZE, window)
    assert said == pytest.approx(found(row, row, window).mean())


def test_of_the_last_device_of_gathered_keys():
    row = np.arange(LENGTH)
    said = expected_turns(LENGTH // SIZE, SIZE, None, queries=4)
    assert said == found(row[-16:], row, None).mean()


@pytest.mark.parametrize("devices", [2, 4])
def test_of_a_ring_over_all_its_turns(devices):
    chunks = np.split(np.arange(LENGTH), 2 * devices)
    parts = [np.concatenate([chunks[i], chunks[-1 - i]]) for i in range(devices)]
    turns = [found(queries, keys, None).mean() for queries in parts for keys in parts]
    said = expected_turns(LENGTH // devices // SIZE, SIZE, None, devices=devices)
    assert said == pytest.approx(np.mean(turns))
