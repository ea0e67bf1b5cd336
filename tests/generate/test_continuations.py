"""Continuations with the key-value cache are those of reading the whole text again each time."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from maxlm.batch import Batch
from maxlm.config.schema import ModelConfig
from maxlm.errors import ConfigError
from maxlm.generate.generator import Generator
from maxlm.generate.sampling import SamplingOptions
from maxlm.model.definition import define
from maxlm.model.parameter import Kind

VOCAB, CONTEXT, ROWS = 97, 32, 9
GREEDY = SamplingOptions(temperature=0)
BASE = {
    "vocab_size": VOCAB,
    "num_layers": 2,
    "embed_dim": 32,
    "num_heads": 4,
    "num_kv_heads": 4,
    "head_dim": 8,
    "mlp_dim": 48,
    "max_length": CONTEXT,
}
VARIANTS = {
    "grouped queries": {"num_kv_heads": 1, "qk_norm": True},
    "sliding window": {
        "num_layers": 3,  # the pattern of two leaves a remainder
        "attention_pattern": ["local", "global"],
        "attention_window": 5,
    },
    "window, groups and caps": {
        "num_kv_heads": 2,
        "attention_pattern": ["local"],
        "attention_window": 3,
        "attention_logit_cap": 2.0,
        "output_logit_cap": 4.0,
    },
    "learned positions": {"positions": "learned", "norm": "layer", "tie_embeddings": False},
}


@functools.cache
def model_of(variant):
    """A model and weights large enough that what it says depends on all that it read."""
    model = define(ModelConfig(**(BASE | VARIANTS[variant])))
    rng = np.random.default_rng(0)
    params = {}
    for name, info in model.parameters.items():
        value = rng.normal(size=info.shape) * (0.1 if info.kind is Kind.VECTOR else 0.4)
        value += name.endswith("scale")
        params[name] = np.asarray(value, np.float32)
    return model, params


@functools.cache
def generator_of(variant, context):
    return Generator(model_of(variant)[0], context_length=context)


@functools.cache
def plain_logits(variant):
    model, _ = model_of(variant)
    return jax.jit(lambda params, batch: model.bind(params).logits(batch))


def likeliest(variant, texts):
    """The likeliest token after each text, all of it read at once and without a cache."""
    tokens = np.zeros((ROWS, CONTEXT), np.int32)  # one shape: compiled once
    segments = np.zeros_like(tokens)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
        segments[row, : len(text)] = 1
    positions = np.broadcast_to(np.arange(CONTEXT, dtype=np.int32), tokens.shape)
    weights = segments.astype(np.float32)
    batch = Batch(tokens, np.zeros_like(tokens), weights, segments, positions)
    logits = plain_logits(variant)(model_of(variant)[1], batch)
    return [int(logits[row, len(text) - 1].argmax()) for row, text in enumerate(texts)]


def prompts_of(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, length).tolist() for length in lengths]


def continued(variant, prompts, max_tokens, options=GREEDY, seed=0, context=CONTEXT):
    stream = generator_of(variant, context).stream(
        model_of(variant)[1], prompts, max_tokens=max_tokens, options=options, seed=seed
    )
    return np.stack(list(stream), axis=1).tolist()


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_with_the_cache_equals_the_growing_text_read_again(variant):
    texts = prompts_of(3, 8)
    found = continued(variant, texts, 12)
    for index in range(12):
        drawn = likeliest(variant, texts)
        assert [row[index] for row in found] == drawn, index
        texts = [[*text, token] for text, token in zip(texts, drawn, strict=True)]
    assert len({tuple(row) for row in found}) == 2  # the prompts matter


@pytest.mark.parametrize("variant", ["learned positions"])  # which tell the padding from the text
def test_prompts_of_different_lengths_in_a_batch_go_on_as_each_alone(variant):
    prompts = prompts_of(13, 3)
    together = continued(variant, prompts, 10)
    assert together == [*continued(variant, prompts[:1], 10), *continued(variant, prompts[1:], 10)]


@pytest.mark.parametrize("length", [3, 16, 40])
def test_a_full_context_goes_on_from_its_newer_half_at_least(length):
    context = 16
    (text,) = prompts_of(length)
    (found,) = continued("grouped queries", [text], 30, context=context)
    for index, token in enumerate(found):
        whole = text + found[:index]
        longest = min(len(whole), context)
        shortest = min(len(whole), context // 2)
        if len(whole) < context:  # nothing is forgotten before it has to be
            shortest = longest
        suffixes = [whole[-size:] for size in range(shortest, longest + 1)]
        assert token in likeliest("grouped queries", suffixes), index


def test_draws_repeat_with_their_seed_and_differ_between_rows():
    (prompt,) = prompts_of(6)
    prompts, options = [prompt] * 8, SamplingOptions(temperature=100.0)
    first = continued("grouped queries", prompts, 20, options, seed=3)
    assert continued("grouped queries", prompts, 20, options, seed=3) == first
    assert continued("grouped queries", prompts, 5, options, seed=3) == [row[:5] for row in first]
    assert continued("grouped queries", prompts, 20, options, seed=4) != first
    assert len({tuple(row) for row in first}) == 8
    assert len(set(first[0])) > 10  # a new draw at every step
    drawn = {token for row in first for token in row}
    assert len(drawn) > VOCAB // 2 and max(drawn) < VOCAB  # the table's padding is no token


def test_tokens_come_one_step_at_a_time():
    stream = generator_of("grouped queries", CONTEXT).stream(
        model_of("grouped queries")[1], prompts_of(3, 8), max_tokens=3, options=GREEDY
    )
    for _ in range(3):
        step = next(stream)
        assert step.shape == (2,) and step.dtype == np.int32
    assert next(stream, None) is None


def test_what_cannot_be_continued_is_refused():
    model, params = model_of("grouped queries")
    generator = Generator(model, context_length=CONTEXT)
    with pytest.raises(ConfigError, match="max_tokens is 0"):
        next(generator.stream(params, [[1]], max_tokens=0))
    with pytest.raises(ConfigError, match="prompt 2 of 2 is empty"):
        next(generator.stream(params, [[1], []], max_tokens=1))
