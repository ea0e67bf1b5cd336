"""Loss, perplexity and bits per byte against plain numpy over every target of a split."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import jax
import numpy as np
import pytest

from maxlm.batch import Batch
from maxlm.config.schema import ModelConfig, ParallelConfig
from maxlm.data.rows import InMemoryTokens
from maxlm.data.windows import eval_batches
from maxlm.evaluate.perplexity import EvalSums, evaluate, make_eval_step
from maxlm.model.decoder import Execution
from maxlm.model.definition import define
from maxlm.parallel.mesh import make_mesh
from maxlm.parallel.placement import local_rows, place_batch

VOCAB, LENGTH, BATCH = 61, 16, 4
SHAPE = {
    "vocab_size": VOCAB,
    "num_layers": 2,
    "embed_dim": 16,
    "num_heads": 2,
    "num_kv_heads": 2,
    "head_dim": 8,
    "mlp_dim": 32,
}
TOKEN_BYTES = np.random.default_rng(2).integers(0, 5, VOCAB).astype(np.int32)


@cache
def parts():
    """(model, parameters, jitted evaluation step); the loss is computed in chunks."""
    model = define(ModelConfig(**SHAPE), Execution(loss_chunk=24))
    rng = np.random.default_rng(0)
    params = {
        name: (rng.normal(size=info.shape) * 0.5 + name.endswith("scale")).astype(np.float32)
        for name, info in model.parameters.items()
    }
    return model, params, make_eval_step(model, TOKEN_BYTES)


@cache
def split():
    """Documents of many lengths; the last window of all is not full."""
    rng = np.random.default_rng(1)
    lengths = [5, 1, 40, 17, 16, 2, 33, 60, 3, 9, 75, 4, 31, 20, 300, 3]
    tokens = InMemoryTokens([rng.integers(0, VOCAB, n) for n in lengths])
    assert (tokens.num_tokens - 1) % LENGTH and (tokens.num_tokens - 1) % (LENGTH * BATCH)
    return tokens


@cache
def log_probabilities():
    """Of every target, float64 `[N - 1]`: entry t is of token t + 1, NaN where a document begins."""
    tokens, (model, params, _) = split(), parts()
    count = tokens.num_tokens - 1
    starts = tokens.document_starts.tolist()
    # A piece is what a window sees of a document: here it is read alone, from position 0.
    pieces = list(pairwise(sorted({*range(0, count, LENGTH), *starts[:-1], count})))
    rows = np.zeros((len(pieces), LENGTH), np.int32)
    seen = np.zeros_like(rows)
    for row, (first, stop) in enumerate(pieces):
        rows[row, : stop - first] = tokens.read(first, stop)
        seen[row, : stop - first] = 1
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), rows.shape)
    batch = Batch(rows, rows, seen.astype(np.float32), seen, positions)
    logits = jax.jit(lambda params, batch: model.bind(params).logits(batch))(params, batch)
    values = np.asarray(logits, np.float64)
    values -= values.max(-1, keepdims=True)
    values -= np.log(np.exp(values).sum(-1, keepdims=True))
    found = np.empty(count)
    for row, (first, stop) in enumerate(pieces):
        targets = tokens.read(first + 1, stop + 1)
        found[first:stop] = values[row, np.arange(stop - first), targets]
    found[[start - 1 for start in starts[1:-1]]] = np.nan
    return found


def plainly(end=None):
    """Loss, perplexity, bits per byte and number of targets of the first `end` targets."""
    found = log_probabilities()[:end]
    counted = ~np.isnan(found)
    nll = -found[counted].sum()
    targets = split().read(1, len(found) + 1)[counted]
    size = TOKEN_BYTES[targets].sum()
    loss = nll / counted.sum()
    return {
        "loss": loss,
        "perplexity": np.exp(loss),
        "bits_per_byte": nll / np.log(2) / size,
        "tokens": counted.sum(),
    }


def evaluated(batches):
    _, params, step = parts()
    return evaluate(step, params, batches)


def assert_equal(found, wanted):
    assert found["tokens"] == wanted["tokens"]
    for name in ("loss", "perplexity", "bits_per_byte"):
        assert found[name] == pytest.approx(wanted[name], rel=2e-6), name


def test_every_target_counts_once_and_none_across_documents():
    batches = list(eval_batches(split(), LENGTH, BATCH))
    assert len(batches) > 8  # more than may be unfinished at once
    assert not batches[-1].segment_ids.all()  # the last is padded
    found = evaluated(batches)
    assert_equal(found, plainly())
    inside = split().num_tokens - 1 - (split().num_documents - 1)
    assert found["tokens"] == inside and isinstance(found["tokens"], int)
    assert found["seconds"] > 0


@pytest.mark.parametrize("end", [1, LENGTH, LENGTH + 1, LENGTH * BATCH, 500])
def test_only_the_first_targets_count_when_so_many_are_asked_for(end):
    assert_equal(evaluated(eval_batches(split(), LENGTH, BATCH, max_tokens=end)), plainly(end))


def test_the_batch_size_changes_nothing():
    assert_equal(evaluated(eval_batches(split(), LENGTH, 2 * BATCH)), plainly())


def test_targets_of_weight_0_are_ignored_whatever_they_are():
    rng = np.random.default_rng(3)
    changed = []
    for batch in eval_batches(split(), LENGTH, BATCH):
        others = rng.integers(0, VOCAB, batch.targets.shape)
        targets = np.where(batch.loss_weights > 0, batch.targets, others).astype(np.int32)
        assert (targets != batch.targets).any() or batch.loss_weights.all()
        changed.append(batch._replace(targets=targets))
    assert_equal(evaluated(changed), plainly())


def test_sharded_weights_and_batches_give_the_same_numbers():
    mesh = make_mesh(ParallelConfig(fsdp=2, tensor=2), jax.devices()[:4])
    model, params, _ = parts()
    rows = local_rows(BATCH, mesh)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, model.shardings(mesh))
        batches = (
            place_batch(batch, BATCH, rows, mesh)
            for batch in eval_batches(split(), LENGTH, BATCH, rows=rows)
        )
        found = evaluate(make_eval_step(model, TOKEN_BYTES), placed, batches)
    assert_equal(found, plainly())


def sums(nll, weight, size):
    return EvalSums(np.float32(nll), np.float32(weight), np.float32(size))


def test_sums_of_many_batches_are_added_in_float64():
    class Ready(np.float32):
        def block_until_ready(self):
            return self

    def step(params, batch):
        return sums(0, 1, 1)._replace(nll=Ready(2**24 if batch == 0 else 1))

    found = evaluate(step, {}, range(1 + 2**10))
    assert found["loss"] * found["tokens"] == pytest.approx(2**24 + 2**10, rel=1e-12)


def test_no_targets_give_no_numbers_and_a_hopeless_model_no_overflow():
    empty = evaluate(lambda params, batch: batch, {}, [])
    assert math.isnan(empty["loss"]) and math.isnan(empty["bits_per_byte"])
    assert empty["tokens"] == 0
    special = evaluate(lambda params, batch: batch, {}, [sums(3.0, 2, 0)])
    assert special["loss"] == 1.5 and math.isnan(special["bits_per_byte"])
    assert math.isfinite(evaluate(lambda p, b: b, {}, [sums(1e6, 1, 1)])["perplexity"])
