"""Kernels under a `vmap` over one element, as inside `shard_map` over the stages of a pipeline."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.kernels.attention.chunked import attend_places, chunked_attention
from maxlm.kernels.attention.cudnn import cudnn_attention
from maxlm.kernels.attention.parts import Places
from maxlm.kernels.grouped_matmul.blocks import blocks
from maxlm.kernels.one_mapped import one_mapped
from tests.kernels.attention.packed import packed_batch
from tests.kernels.operations import operations


def branched(x, flag):
    return jax.lax.cond(flag > 0, lambda: {"out": x * 2}, lambda: {"out": x - 1})


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_values_are_those_of_a_vmap(size, axes):
    x, flag = np.arange(size * 4.0).reshape(size, 4), np.arange(size)
    given = [a if axis == 0 else a[0] for a, axis in zip((x, flag), axes, strict=True)]
    found = jax.vmap(one_mapped(branched), axes)(*given)
    np.testing.assert_array_equal(found["out"], jax.vmap(branched, axes)(*given)["out"])


def of_attention(kernel, dtype=jnp.float32):
    return kernel, packed_batch(length=384, dtype=dtype)


def second_half(query, key, value, segments):
    """The queries of a row's second half over all keys, as where keys are gathered."""
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)
    half = len(index) // 2
    places = Places(index[half:], index, segments[:, half:], segments)
    return attend_places(None, None, query[:, half:], key, value, places)


def of_experts():
    return blocks, (jnp.ones((64, 8)), jnp.ones((4, 8, 8)), jnp.arange(4))


CASES = {
    "chunked": partial(of_attention, chunked_attention),
    "cudnn": partial(of_attention, cudnn_attention, jnp.bfloat16),
    "second half": partial(of_attention, second_half),
    "blocks": of_experts,
}


@pytest.mark.parametrize("case", CASES)
def test_over_one_element_loops_and_branches_stay_as_they_are(case):
    """Not: slices as gathers and carries selected at every turn, both branches, or no rule at all."""
    function, arrays = CASES[case]()

    def gradients(function):
        return jax.grad(lambda *a: function(*a).astype(jnp.float32).sum(), (0, 1))

    plain = operations(jax.make_jaxpr(gradients(function))(*arrays).jaxpr)
    mapped = jax.make_jaxpr(gradients(jax.vmap(function)))(*(a[None] for a in arrays))
    mapped = operations(mapped.jaxpr)
    loops = ("while", "cond", "select_n", "dynamic_slice", "gather", "scatter")
    assert plain["while"] or plain["cond"]
    assert {name: mapped[name] for name in loops} == {name: plain[name] for name in loops}
