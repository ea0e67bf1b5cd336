"""Our decoder against transformers': the same files read by both; logits, loss, gradients, documents."""

import copy
import dataclasses
import os
import re

import jax
import numpy as np
import pytest

from maxlm.interop.folder import read_folder
from maxlm.interop.tensors import tensors_of
from maxlm.interop.transforms import Vector
from maxlm.model.definition import define
from tests.cases import few
from tests.interop.goldens import their_logits, theirs_of
from tests.interop.tiny import (
    BEYOND_LOGITS,
    TINY,
    VOCAB,
    batch_of,
    logits_of,
    prompts,
    read_tiny,
    write_folder,
)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
REASON = "torch is what our models are compared with; it comes with maxlm[test] on Python 3.11"
torch = pytest.importorskip("torch", reason=REASON)
pytest.importorskip("transformers", reason=REASON)


@pytest.fixture(scope="module", params=TINY)
def pair(request, tmp_path_factory):
    """(name, folder, transformers' model, our definition, our parameters)."""
    folder = tmp_path_factory.mktemp("tiny")
    write_folder(request.param, folder)
    return request.param, folder, theirs_of(folder), *read_tiny(folder)


def test_logits_are_equal(pair):
    _, _, theirs, model, params = pair
    expected = their_logits(_in_float64(theirs), prompts())
    assert expected.std() > 1
    actual = logits_of(model, params, batch_of(prompts()))
    np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=0)


def _in_float64(theirs):
    """Their model, whose own rounding in float32 is as large as ours."""
    exact = copy.deepcopy(theirs).double()
    exact.config._experts_implementation = "eager"  # torch's grouped matmul has no float64
    return exact


@pytest.mark.parametrize("pair", few(TINY, BEYOND_LOGITS.__contains__), indirect=True)
def test_documents_packed_in_a_row_are_read_as_if_alone(pair):
    _, _, theirs, model, params = pair
    lengths = (19, 3, 15)
    documents = [_tokens(1, length, seed=length) for length in lengths]
    tokens = np.concatenate([*documents, np.zeros((1, 1), np.int64)], axis=1)
    segments = np.repeat([1, 2, 3, 0], [*lengths, 1])[None].astype(np.int32)
    positions = np.concatenate([np.arange(n) for n in (*lengths, 1)])[None].astype(np.int32)
    batch = batch_of(tokens)._replace(segment_ids=segments, positions=positions)
    actual = logits_of(model, params, batch)
    expected = np.concatenate([their_logits(theirs, d) for d in documents], axis=1)
    np.testing.assert_allclose(actual[:, : sum(lengths)], expected, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pair",
    few(TINY, BEYOND_LOGITS.__contains__),
    indirect=True,
)
def test_loss_and_gradients_are_equal(pair):
    name, folder, theirs, model, params = pair
    tokens = _tokens(2, 25)
    text = torch.from_numpy(tokens)
    loss = theirs(text, labels=text).loss
    theirs.zero_grad()
    loss.backward()
    expected = _gradients(folder, theirs, model)
    batch = batch_of(tokens[:, :-1], tokens[:, 1:])
    # Theirs adds no loss of the router unless it is asked to.
    plain = model.config.model_copy(update={"load_balance_loss": 0.0, "router_z_loss": 0.0})
    model = define(plain, model.execution)

    @jax.jit
    def mean(params):
        sums = model.bind(params).loss(batch)
        return sums.total / sums.weight

    value, actual = jax.value_and_grad(mean)(params)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    actual = {name: actual[name] for name in model.parameters}  # variables have no gradient
    assert actual.keys() == expected.keys()
    largest = max(np.abs(array).max() for array in expected.values())
    for key in expected:
        if key.endswith("attention.key.bias") and name == "gpt2":
            # Without RoPE no key bias changes a softmax: zero but for rounding, on both sides.
            assert max(np.abs(actual[key]).max(), np.abs(expected[key]).max()) < 1e-5 * largest
        else:
            scale = max(np.abs(expected[key]).max(), 1e-3 * largest)
            assert np.abs(actual[key] - expected[key]).max() < 5e-5 * scale, key


def test_the_load_balance_loss_is_theirs_per_expert_of_a_token(tmp_path):
    """Theirs counts visits per token, ours shares of all visits; of one layer they are else equal."""
    settings = {"num_hidden_layers": 1, "router_aux_loss_coef": 0.3, "output_router_logits": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TINY, "mixtral", TINY["mixtral"] | settings)
        write_folder("mixtral", tmp_path)
    theirs, (model, params) = theirs_of(tmp_path), read_tiny(tmp_path)
    model = define(model.config.model_copy(update={"load_balance_loss": 0.3 * 2}))
    tokens = _tokens(2, 25)
    # Both are to see the same tokens: theirs reads the last one too, as padding.
    mask = torch.ones(tokens.shape, dtype=torch.int64)
    mask[:, -1] = 0
    text = torch.from_numpy(tokens)
    out = theirs(text, attention_mask=mask, labels=text)
    out.loss.backward()
    batch = batch_of(tokens[:, :-1], tokens[:, 1:])

    @jax.jit
    def mean(params):
        sums = model.bind(params).loss(batch)
        return sums.total / sums.weight, sums

    (value, sums), actual = jax.value_and_grad(mean, has_aux=True)(params)
    balance = sums.routing.load_balance / sums.weight
    np.testing.assert_allclose(balance, out.aux_loss.item() / 2, rtol=1e-5)
    np.testing.assert_allclose(value, out.loss.item(), rtol=1e-5)
    wanted = _gradients(tmp_path, theirs, model)
    name = "segments.0.blocks.0.mlp.router.kernel"
    np.testing.assert_allclose(
        actual[name], wanted[name], atol=1e-5 * np.abs(wanted[name]).max(), rtol=0
    )


def _gradients(folder, theirs, model):
    """Their gradients as arrays of ours, padded; a gradient of 1 + w is one of w."""
    family, _ = read_folder(str(folder))
    found = {n: p.grad.numpy() for n, p in theirs.named_parameters()}
    found = _by_file_names(found, family.name)
    infos = model.parameters
    result = {name: np.zeros(info.shape, np.float32) for name, info in infos.items()}
    for tensor in tensors_of(family, model):
        if tensor.places[0].name in model.variables:
            continue
        transform = tensor.transform
        if isinstance(transform, Vector):
            transform = dataclasses.replace(transform, offset=0.0)
        parts = transform.to_ours(found.pop(tensor.name), tensor.pieces)
        for place, part in zip(tensor.places, parts, strict=True):
            rows = tuple(slice(0, n) for n in part.shape)
            result[place.name][(*place.index, *rows)] = part
    assert not found
    return result


def _by_file_names(named, family):
    """Parameters of transformers' modules by the names of its files: experts are joined in modules."""
    if family == "gpt_oss":  # and in its files
        return named
    mixtral = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
    result = {}
    for name, array in named.items():
        block = name.replace(".mlp.", ".block_sparse_moe.") if family == "mixtral" else name
        joined = re.fullmatch(r"(.*\.experts)\.(gate_up_proj|down_proj)", block)
        if joined is None:
            result[block] = array
            continue
        for expert, matrix in enumerate(array):
            parts = {"down_proj": matrix}
            if joined[2] == "gate_up_proj":
                parts = dict(zip(("gate_proj", "up_proj"), np.split(matrix, 2), strict=True))
            for part, own in parts.items():
                part = mixtral[part] if family == "mixtral" else part
                result[f"{joined[1]}.{expert}.{part}.weight"] = own
    return result


def _tokens(rows, length, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, (rows, length))
