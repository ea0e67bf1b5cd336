"""How the next token is chosen, told per request and drawn per row.

Logits go through, in this order: bias, penalties, temperature, top-k, top-p, min-p. Rows of a batch belong
to different requests, so every option is an array `[B]`; `Steps` says which of them any row needs, and the
others cost nothing. A draw depends on the request's seed and on how many tokens it drew before, not on the
rows beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maxlm.errors import ConfigError
from maxlm.generate.threshold import kth_largest, smallest_of_mass

Rowwise = jax.Array | np.ndarray

SMALLEST = 1e-6  # below this float32 knows no share of a probability, and temperatures overflow
MAX_BIAS = 100.0  # as the OpenAI API has it: forbids a token, or allows no other
MOST_ALTERNATIVES = 100  # of log-probabilities


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most likely token; logits are divided by it otherwise.
        top_k: only the k most likely tokens; None: all.
        top_p: only the fewest tokens whose probabilities sum to p (Holtzman et al.,
            arXiv:1904.09751); 1: all.
        min_p: only tokens at least so many times as likely as the likeliest (Nguyen et al.,
            arXiv:2407.01082); 0: all.
        repetition_penalty: logits of tokens in prompt or answer are divided by it where positive and
            multiplied where negative (Keskar et al., arXiv:1909.05858); 1: none.
        presence_penalty: subtracted from the logit of each token that was drawn already.
        frequency_penalty: subtracted from it once for each time that it was drawn.
        logit_bias: token id → what is added to its logit, from -100 to 100.
        seed: of the draws.
        logprobs: how many of the likeliest tokens are told with their log-probabilities, beside the
            one that is drawn, as the model has them before all of the above; None: nothing is told.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    logprobs: int | None = None

    def __post_init__(self) -> None:
        """Refuse what chooses nothing. Raises ConfigError."""
        if self.temperature != 0 and not SMALLEST <= self.temperature < math.inf:
            raise ConfigError(
                f"temperature is {self.temperature}: use 0 for the likeliest token, or at least "
                f"{SMALLEST:g} to draw (1 draws as the model predicts)"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k is {self.top_k}: keep at least 1 token, or leave it out")
        if not SMALLEST <= self.top_p <= 1:
            raise ConfigError(
                f"top_p is {self.top_p}: use a share from {SMALLEST:g} to 1 (1 keeps all)"
            )
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p is {self.min_p}: use a share from 0 (keeps all) to 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise ConfigError(
                f"repetition_penalty is {self.repetition_penalty}: use a positive factor "
                "(1 changes nothing, 1.2 makes repetitions less likely)"
            )
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name} is {getattr(self, name)}: use a number (0: none)")
        for token, bias in self.logit_bias.items():
            if not -MAX_BIAS <= bias <= MAX_BIAS:
                raise ConfigError(
                    f"logit_bias of token {token} is {bias}: use -{MAX_BIAS:g} (never) to "
                    f"{MAX_BIAS:g} (always)"
                )
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_ALTERNATIVES:
            raise ConfigError(
                f"logprobs is {self.logprobs}: ask for 0 to {MOST_ALTERNATIVES} alternatives"
            )

    @property
    def counts_tokens(self) -> bool:
        """Whether a choice depends on the tokens before."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


@dataclass(frozen=True)
class Steps:
    """Which steps any row of a batch needs; the program is compiled for these.

    Attributes:
        draws: some row has a temperature.
        top_k: some row has it.
        top_p: some row has it.
        min_p: some row has it.
        alternatives: most log-probabilities that a row asks for; None: no row asks for any.
    """

    draws: bool = False
    top_k: bool = False
    top_p: bool = False
    min_p: bool = False
    alternatives: int | None = None

    @staticmethod
    def of(rows: list[SamplingOptions]) -> Steps:
        """What these rows need together."""
        drawing = [r for r in rows if r.temperature]
        asked = [r.logprobs for r in rows if r.logprobs is not None]
        return Steps(
            draws=bool(drawing),
            top_k=any(r.top_k is not None for r in drawing),
            top_p=any(r.top_p < 1 for r in drawing),
            min_p=any(r.min_p > 0 for r in drawing),
            # Few sizes, few programs.
            alternatives=None if not asked else max(asked) and 1 << (max(asked) - 1).bit_length(),
        )


class RowOptions(NamedTuple):
    """The options of the rows of a batch, `[B]` each, on the host or the device."""

    temperature: Rowwise  # float32
    top_k: Rowwise  # int32
    top_p: Rowwise  # float32
    min_p: Rowwise  # float32
    repetition: Rowwise  # float32
    presence: Rowwise  # float32
    frequency: Rowwise  # float32
    seed: Rowwise  # uint32


class Past(NamedTuple):
    """What penalties look at."""

    prompt: jax.Array  # [B, V] bool: tokens of the prompt
    drawn: jax.Array  # [B, V] int32: how often each was drawn


class Drawn(NamedTuple):
    """Tokens, one a row, and what the model thought of them."""

    token: jax.Array  # [B] int32
    logprob: jax.Array | None  # [B] float32
    alternatives: jax.Array | None  # [B, n] int32, the likeliest first
    alternative_logprobs: jax.Array | None  # [B, n] float32


def sample(
    logits: jax.Array,
    options: RowOptions,
    index: jax.Array,
    steps: Steps,
    *,
    past: Past | None = None,
    bias: jax.Array | None = None,
) -> Drawn:
    """Draw a token per row.

    Args:
        logits: `[B, V]`.
        options: of each row.
        index: `[B]` int32, how many tokens each row drew before.
        steps: which steps to take.
        past: tokens so far; None: no row has a penalty.
        bias: `[B, V]` float32 added to logits; None: no row has any.
    """
    logits = logits.astype(jnp.float32)
    told = _logprobs(logits, steps.alternatives)
    if bias is not None:
        logits = logits + bias
    if past is not None:
        logits = _penalized(logits, options, past)
    token = jnp.argmax(logits, -1).astype(jnp.int32)
    if steps.draws:
        drawn = _draw(_cut(logits, options, steps), jnp.asarray(options.seed), index)
        token = jnp.where(options.temperature > 0, drawn, token)
    if told is None:
        return Drawn(token, None, None, None)
    logprobs, values, tokens = told
    chosen = jnp.take_along_axis(logprobs, token[:, None], -1)[:, 0]
    return Drawn(token, chosen, tokens, values)


def _logprobs(
    logits: jax.Array, alternatives: int | None
) -> tuple[jax.Array, jax.Array | None, jax.Array | None] | None:
    if alternatives is None:
        return None
    logprobs = jax.nn.log_softmax(logits, -1)
    if not alternatives:
        return logprobs, None, None
    values, tokens = jax.lax.top_k(logprobs, min(alternatives, logits.shape[-1]))
    return logprobs, values, tokens.astype(jnp.int32)


def _penalized(logits: jax.Array, options: RowOptions, past: Past) -> jax.Array:
    factor = options.repetition[:, None]
    scaled = jnp.where(logits > 0, logits / factor, logits * factor)
    logits = jnp.where(past.prompt | (past.drawn > 0), scaled, logits)
    often = past.drawn.astype(jnp.float32)
    return logits - options.frequency[:, None] * often - options.presence[:, None] * (often > 0)


def _cut(logits: jax.Array, options: RowOptions, steps: Steps) -> jax.Array:
    """Logits divided by the temperature, those of tokens that may not be drawn at the lowest."""
    # From 0 downwards: however small a temperature is, the likeliest token's logit stays finite.
    temperature = jnp.where(options.temperature > 0, options.temperature, 1)[:, None]
    logits = (logits - logits.max(-1, keepdims=True)) / temperature
    lowest = jnp.finfo(logits.dtype).min

    def keep(kept: jax.Array, logits: jax.Array) -> jax.Array:
        return jnp.where(kept, logits, lowest)

    if steps.top_k:
        logits = keep(logits >= kth_largest(logits, jnp.asarray(options.top_k)), logits)
    if steps.top_p:
        shares = jax.nn.softmax(logits, -1)
        logits = keep(shares >= smallest_of_mass(shares, jnp.asarray(options.top_p)), logits)
    if steps.min_p:
        logits = keep(logits >= jnp.log(options.min_p)[:, None], logits)
    return logits


def _draw(logits: jax.Array, seeds: jax.Array, index: jax.Array) -> jax.Array:
    def one(logits: jax.Array, seed: jax.Array, index: jax.Array) -> jax.Array:
        return jax.random.categorical(jax.random.fold_in(jax.random.key(seed), index), logits)

    return jax.vmap(one)(logits, seeds, index).astype(jnp.int32)
