"""The weights as generation reads them are the same model."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.config.choices import Quantization
from maxlm.kernels.linear import linear, linear_output_major
from maxlm.kernels.quantized import quantize, stored_dtype
from maxlm.model.definition import define
from maxlm.model.inference import for_inference
from maxlm.model.parameter import Kind
from tests.cases import few
from tests.generate.models import VARIANTS, VOCAB, model_of
from tests.interop.tiny import batch_of, logits_of


@pytest.mark.parametrize(
    "variant", few(VARIANTS, ("window, groups and caps", "experts").__contains__)
)
def test_the_same_logits_layer_by_layer(variant):
    model, params = model_of(variant)
    served, taken = for_inference(model, params)
    assert set(taken) == set(served.parameters | served.variables)
    for name, info in (served.parameters | served.variables).items():
        assert taken[name].shape == info.shape, name
    tokens = np.random.default_rng(1).integers(0, VOCAB, (2, 24))
    np.testing.assert_allclose(
        logits_of(served, taken, batch_of(tokens)),
        logits_of(model, params, batch_of(tokens)),
        atol=2e-5,
    )


def test_matrices_are_in_the_compute_dtype_and_what_is_read_in_float32_is_not():
    model, params = model_of("experts")
    model = define(model.config, replace(model.execution, compute_dtype=jnp.bfloat16))
    _, taken = for_inference(model, params)
    narrow = {name for name, array in taken.items() if array.dtype == jnp.bfloat16}
    assert narrow == {
        name
        for name in taken
        if name == "embedding" or (name.endswith("kernel") and "router" not in name)
    }


@pytest.mark.parametrize(
    "kind", few((Quantization.INT8, Quantization.FP8), lambda kind: kind == "int8")
)
@pytest.mark.parametrize("variant", ["grouped queries", "experts"])
def test_of_8_bit_weights_the_logits_are_those_of_the_rounded_weights(variant, kind):
    model, params = model_of(variant)
    served, taken = for_inference(model, params, kind)
    rounded = {}
    for name, array in params.items():
        info = (model.parameters | model.variables)[name]
        if info.kind is Kind.MATRIX and "router" not in info.axes:
            values, scale = quantize(jnp.asarray(array), info.reduction_dims, stored_dtype(kind))
            scale = jnp.expand_dims(scale, info.reduction_dims)
            array = np.asarray(values).astype(np.float32) * np.asarray(scale)
        rounded[name] = array
    tokens = batch_of(np.random.default_rng(1).integers(0, VOCAB, (2, 24)))
    found = logits_of(served, taken, tokens)
    np.testing.assert_allclose(found, logits_of(model, rounded, tokens), atol=1e-4)
    assert np.abs(found - logits_of(model, params, tokens)).max() > 1e-3
    narrow = [name for name, array in taken.items() if array.dtype == stored_dtype(kind)]
    assert {name for name in taken if name.endswith("kernel") and "router" not in name} == set(
        narrow
    )


@pytest.mark.parametrize(
    ("kind", "most"),
    [(Quantization.INT8_MATMUL, 0.1), (Quantization.FP8_MATMUL, 0.2)],  # 1 in 254, 1 in 16
)
def test_rounded_activations_change_little(kind, most):
    model, params = model_of("learned positions")
    tokens = batch_of(np.random.default_rng(1).integers(0, VOCAB, (2, 24)))
    plain = logits_of(model, params, tokens)
    found = logits_of(*for_inference(model, params, kind), tokens)
    assert 1e-3 < np.abs(found - plain).std() / plain.std() < most


def test_where_nothing_changes_nothing_is_copied():
    model, params = model_of("learned positions")
    _, taken = for_inference(model, params)
    kept = [name for name in params if not name.startswith("segments.")]
    assert kept and all(taken[name] is params[name] for name in kept)


@pytest.mark.parametrize(("shape", "contracted"), [((6, 4, 5), 1), ((2, 3, 7), 2)])
def test_a_linear_map_kept_the_other_way_round(shape, contracted):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=shape).astype(np.float32)
    x = rng.normal(size=(3, 2, *shape[:contracted])).astype(np.float32)
    other = np.moveaxis(kernel, range(contracted), range(-contracted, 0))
    np.testing.assert_allclose(
        jax.jit(linear_output_major, static_argnums=2)(x, other, contracted),
        linear(x, kernel, contracted),
        rtol=1e-5,
        atol=1e-5,
    )
