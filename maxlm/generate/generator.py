"""Continuing prompts with a plain key-value cache.

In: a model, its parameters, token ids of prompts; out: the ids that follow, as they are drawn.
Prompts of a batch are padded on the left to a shared length. When the context is full, the newer
half of it is read again and generation goes on.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from maxlm.errors import ConfigError
from maxlm.generate.sampling import SamplingOptions, sample
from maxlm.model.attention import Cache
from maxlm.model.definition import ModelDefinition, Params
from maxlm.parallel.axes import constrain, mesh_shards
from maxlm.parallel.placement import on_mesh_of


class Generator:
    """Generates with one model; its programs are compiled once per shape."""

    def __init__(self, model: ModelDefinition, *, context_length: int):
        """Prepare.

        Args:
            model: the model's definition.
            context_length: tokens it was trained to see at once.
        """
        self.model = model
        self.context_length = context_length
        self._read = jax.jit(self._read_tokens, static_argnames="options")
        self._next = jax.jit(self._next_token, static_argnames="options", donate_argnums=(1,))

    def stream(
        self,
        params: Params,
        prompts: list[list[int]],
        *,
        max_tokens: int,
        options: SamplingOptions | None = None,
        seed: int = 0,
    ) -> Iterator[np.ndarray]:
        """Yield `[B]` int32 tokens, one per prompt and step, `max_tokens` times.

        Raises:
            ConfigError: a prompt is empty, or `max_tokens` is not positive.
        """
        if max_tokens < 1:
            raise ConfigError(f"max_tokens is {max_tokens}: ask for at least 1")
        for i, prompt in enumerate(prompts):
            if not prompt:
                raise ConfigError(f"prompt {i + 1} of {len(prompts)} is empty: give it some text")
        options = options or SamplingOptions()
        key = jax.random.key(seed)
        history = [list(prompt) for prompt in prompts]
        caches, used, segments = None, self.context_length, None
        for index in range(max_tokens):
            step_key = jax.random.fold_in(key, index)
            with on_mesh_of(params):
                if used >= self.context_length:
                    tokens, segments = self._window(history)
                    used = tokens.shape[1]
                    drawn, caches = self._read(params, tokens, segments, step_key, options=options)
                else:
                    drawn, caches, segments = self._next(
                        params, caches, drawn, segments, used, step_key, options=options
                    )
                    used += 1
            row = np.asarray(drawn)
            for past, token in zip(history, row, strict=True):
                past.append(int(token))
            yield row

    def _window(self, history: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """The newest tokens of each row, left-padded to few lengths, and the cache's segments."""
        longest = max(map(len, history))
        keep = longest if longest < self.context_length else max(1, self.context_length // 2)
        padded = _padded_length(keep, self.context_length)
        tokens = np.zeros((len(history), padded), np.int32)
        segments = np.zeros((len(history), self.context_length), np.int32)
        for row, past in enumerate(history):
            recent = past[-keep:]
            tokens[row, padded - len(recent) :] = recent
            segments[row, padded - len(recent) : padded] = 1
        return tokens, segments

    def _read_tokens(
        self,
        params: Params,
        tokens: jax.Array,
        segments: jax.Array,
        key: jax.Array,
        *,
        options: SamplingOptions,
    ) -> tuple[jax.Array, list[list[Cache]]]:
        decoder = self.model.bind(params)
        tokens, segments = _everywhere(tokens), _everywhere(segments)
        batch, length = tokens.shape
        current = segments[:, :length]
        caches = decoder.empty_caches(batch, self.context_length)
        positions = jnp.maximum(jnp.cumsum(current, -1) - 1, 0)
        logits, caches = decoder.extend(
            tokens, positions, current, caches, segments, jnp.zeros((), jnp.int32)
        )
        return _everywhere(sample(key, logits, options)), _placed(caches)

    def _next_token(
        self,
        params: Params,
        caches: list[list[Cache]],
        token: jax.Array,
        segments: jax.Array,
        used: jax.Array,
        key: jax.Array,
        *,
        options: SamplingOptions,
    ) -> tuple[jax.Array, list[list[Cache]], jax.Array]:
        decoder = self.model.bind(params)
        segments = _everywhere(segments)
        position = segments.sum(-1, keepdims=True)  # [B, 1], padding has segment 0
        segments = jax.lax.dynamic_update_index_in_dim(segments, jnp.ones_like(token), used, 1)
        ones = jnp.ones_like(token)[:, None]
        logits, caches = decoder.extend(token[:, None], position, ones, caches, segments, used)
        drawn = _everywhere(sample(key, logits, options))
        return drawn, _placed(caches), _everywhere(segments)


def _everywhere(tokens: jax.Array) -> jax.Array:
    """Tokens, or what goes with them, whole on every device: each process reads them all.

    Left alone, the compiler may lay 2 rows over 8 devices in a way that no sharding of the mesh can
    say, and the call fails.
    """
    return constrain(tokens, *["activation"] * tokens.ndim)


def _placed(caches: list[list[Cache]]) -> list[list[Cache]]:
    """Caches `[L, B, S, K, C]`, rows over the data axes where they divide and else whole."""

    def place(cache: jax.Array) -> jax.Array:
        divides = cache.shape[1] % mesh_shards("batch") == 0
        rows = "batch" if divides else "activation"
        return constrain(cache, "activation", rows, "activation", "kv_heads", "head_dim")

    return jax.tree.map(place, caches)


def _padded_length(length: int, context_length: int) -> int:
    """A power of two, or else the coarsest multiple that leaves the cache room for new tokens.

    Few lengths mean few compilations; a padded prompt that fills the context would have every
    token read it all again.
    """
    padded, multiple = 1 << (length - 1).bit_length(), 64
    while padded >= context_length and multiple:
        padded = -(-length // multiple) * multiple
        multiple //= 2
    return padded
