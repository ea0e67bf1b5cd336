"""Small models whose every token matters, and what they say when the whole text is read at once."""

from __future__ import annotations

import functools

import jax
import numpy as np

from maxlm.batch import Batch
from maxlm.config.schema import ModelConfig
from maxlm.generate.engine import Engine
from maxlm.generate.request import Request
from maxlm.generate.rows import Programs
from maxlm.generate.sampling import SamplingOptions
from maxlm.model.definition import define
from maxlm.model.parameter import Kind

VOCAB, CONTEXT = 97, 32
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
    "experts": {
        "num_experts": 4,
        "expert_mlp_dim": 24,
        "dense_layers": 1,
        "router_bias_rate": 0.001,
    },
}


@functools.cache
def model_of(variant):
    """A model and weights large enough that what it says depends on all that it read."""
    model = define(ModelConfig(**(BASE | VARIANTS[variant])))
    rng = np.random.default_rng(0)
    params = {}
    for name, info in (model.parameters | model.variables).items():
        value = rng.normal(size=info.shape) * (0.1 if info.kind is Kind.VECTOR else 0.4)
        value += name.endswith("scale")
        params[name] = np.asarray(value, np.float32)
    return model, params


@functools.cache
def programs_of(variant, longest_pass=CONTEXT):
    return Programs(model_of(variant)[0], longest_pass)


def engine_of(variant, *, context=CONTEXT, longest_pass=CONTEXT, max_rows=4):
    return Engine(
        programs_of(variant, longest_pass),
        model_of(variant)[1],
        context_length=context,
        max_rows=max_rows,
    )


def continued(model, params, prompts, max_tokens, *, context=CONTEXT):
    """The likeliest ids after each prompt, by an engine on any model."""
    return answers(Engine.of(model, params, context_length=context), prompts, max_tokens)


def answers(engine, prompts, max_tokens, options=GREEDY):
    """The ids that an engine answers with."""
    for prompt in prompts:
        engine.submit(Request(prompt, max_tokens, options))
    return [[token.id for token in tokens] for tokens in engine.run()]


def prompts_of(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, length).tolist() for length in lengths]


@functools.cache
def plain_logits(variant):
    model, _ = model_of(variant)
    return jax.jit(lambda params, batch: model.bind(params).logits(batch))


def logits_after(variant, text):
    """`[V]` logits after a text, all of it read at once and without a cache."""
    tokens = np.zeros((1, CONTEXT), np.int32)  # one shape: compiled once
    segments = np.zeros_like(tokens)
    tokens[0, : len(text)], segments[0, : len(text)] = text, 1
    positions = np.arange(CONTEXT, dtype=np.int32)[None]
    batch = Batch(tokens, np.zeros_like(tokens), segments.astype(np.float32), segments, positions)
    return np.asarray(plain_logits(variant)(model_of(variant)[1], batch)[0, len(text) - 1])


def likeliest(variant, text, count):
    """The likeliest `count` tokens after a text, one after the other."""
    text, size = list(text), len(text)
    for _ in range(count):
        text.append(int(logits_after(variant, text).argmax()))
    return text[size:]
