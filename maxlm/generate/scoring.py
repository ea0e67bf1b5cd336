"""How likely a model finds texts, token by token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from maxlm.batch import Batch
from maxlm.generate.bucket import bucket
from maxlm.model.definition import ModelDefinition, Params
from maxlm.parallel.axes import constrain
from maxlm.parallel.placement import on_mesh_of


@dataclass(frozen=True)
class Score:
    """A text as a model sees it.

    Attributes:
        tokens: ids, the beginning of a document included where the model was trained with one.
        logprobs: `[tokens - 1]` natural logarithms of the probabilities of the second token and on,
            each given those before it.
        num_bytes: UTF-8 bytes that these tokens stand for.
    """

    tokens: list[int]
    logprobs: np.ndarray
    num_bytes: int

    @property
    def logprob(self) -> float:
        """Of the whole."""
        return float(self.logprobs.sum(dtype=np.float64))

    @property
    def perplexity(self) -> float:
        """Of a token: e to the mean negative log-probability."""
        return math.exp(-self.logprob / len(self.logprobs)) if len(self.logprobs) else math.nan

    @property
    def bits_per_byte(self) -> float:
        """Negative log₂-probability by bytes."""
        return -self.logprob / math.log(2) / self.num_bytes if self.num_bytes else math.nan


class Scorer:
    """Logits and log-probabilities of whole texts; programs are compiled once per padded length."""

    def __init__(self, model: ModelDefinition):
        self.model = model
        self._logits = jax.jit(self._of_tokens)
        self._logprobs = jax.jit(self._of_targets)

    def logits(self, params: Params, tokens: list[int]) -> np.ndarray:
        """`[T, V]` float32: of the token after each."""
        with on_mesh_of(params):
            logits = self._logits(params, *_padded(tokens))
        return np.asarray(logits[0, : len(tokens)])

    def logprobs(self, params: Params, tokens: list[int]) -> np.ndarray:
        """`[T - 1]` float32: of each token but the first, given those before it."""
        with on_mesh_of(params):
            logprobs = self._logprobs(params, *_padded(tokens))
        return np.asarray(logprobs)[0, : len(tokens) - 1]

    def _of_tokens(self, params: Params, tokens: jax.Array, segments: jax.Array) -> jax.Array:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        weights = segments.astype(jnp.float32)
        batch = Batch(tokens, jnp.zeros_like(tokens), weights, segments, positions)
        logits = self.model.bind(params).logits(batch)
        return constrain(logits, "activation", "activation", "activation")

    def _of_targets(self, params: Params, tokens: jax.Array, segments: jax.Array) -> jax.Array:
        logprobs = jax.nn.log_softmax(self._of_tokens(params, tokens, segments)[:, :-1], -1)
        return jnp.take_along_axis(logprobs, tokens[:, 1:, None], -1)[..., 0]


def _padded(tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
    size = bucket(len(tokens), 16)
    row, segments = np.zeros((1, size), np.int32), np.zeros((1, size), np.int32)
    row[0, : len(tokens)], segments[0, : len(tokens)] = tokens, 1
    return row, segments
