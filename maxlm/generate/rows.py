"""What generation keeps on the device, and the programs that read prompts into it and draw tokens from it.

A batch has rows; each is free or belongs to one request. All that a row needs for its next token lies on
the device, so that the host can ask for a step before it has seen the tokens of the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maxlm.generate.sampling import Drawn, Past, RowOptions, SamplingOptions, Steps, sample
from maxlm.model.cache import Cache, Pass, resized
from maxlm.model.definition import ModelDefinition, Params
from maxlm.parallel.axes import constrain


class Rows(NamedTuple):
    """The rows of a batch."""

    caches: list[list[Cache]]
    token: jax.Array  # [B] int32: drawn last, not yet read
    length: jax.Array  # [B] int32: tokens in the caches
    drawn: jax.Array  # [B] int32: tokens drawn so far
    options: RowOptions
    past: Past | None  # None: no row has a penalty
    bias: jax.Array | None  # [B, V] float32; None: no row has any


@dataclass(frozen=True)
class Size:
    """How much a batch holds.

    Attributes:
        rows: B.
        length: tokens of a row.
        past: whether tokens are counted for penalties.
        bias: whether rows have biases of their own.
    """

    rows: int
    length: int
    past: bool = False
    bias: bool = False


class Newcomers(NamedTuple):
    """Requests on their way into rows, and the tokens of theirs that are read now; host arrays."""

    tokens: np.ndarray  # [P, T] int32
    rows: np.ndarray  # [P] int32; one beyond the batch belongs to no request
    starts: np.ndarray  # [P] int32
    counts: np.ndarray  # [P] int32
    options: RowOptions
    prompt: np.ndarray | None  # [P, V] bool, as in `Past`
    bias: np.ndarray | None  # [P, V] float32


class Programs:
    """The programs of one model, each compiled once per shape; they serve any number of engines."""

    def __init__(self, model: ModelDefinition, longest_pass: int):
        """Prepare.

        Args:
            model: the model's definition.
            longest_pass: most tokens of a prompt that are read at once.
        """
        assert model.config.vocab_size
        self.model = model
        self.longest_pass = longest_pass
        self.vocab_size = model.config.vocab_size
        self.empty = jax.jit(self._empty, static_argnums=1)
        self.resize = jax.jit(self._resize, static_argnums=2)
        self.read = jax.jit(self._read, static_argnames=("steps", "fresh"), donate_argnames="rows")
        self.step = jax.jit(self._step, static_argnames="steps", donate_argnames="rows")

    def _empty(self, params: Params, size: Size) -> Rows:
        """Rows that hold nothing."""
        n, vocab = size.rows, self.vocab_size
        zeros = jnp.zeros(n, jnp.int32)
        caches = self.model.bind(params).empty_caches(n, size.length, self.longest_pass)
        options = jax.tree.map(jnp.asarray, row_options([SamplingOptions()] * n))
        past = Past(jnp.zeros((n, vocab), bool), jnp.zeros((n, vocab), jnp.int32))
        bias = jnp.zeros((n, vocab), jnp.float32)
        return _everywhere(
            Rows(
                caches,
                zeros,
                zeros,
                zeros,
                options,
                past if size.past else None,
                bias if size.bias else None,
            )
        )

    def _resize(self, params: Params, rows: Rows, size: Size) -> Rows:
        """The same rows in a batch that holds more."""
        new = self._empty(params, size)
        caches = resized(rows.caches, new.caches)

        def put(old: Any, empty: Any) -> Any:
            if old is None or empty is None:
                return empty
            return jax.tree.map(
                lambda o, e: jax.lax.dynamic_update_slice(e, o, (0,) * e.ndim), old, empty
            )

        pairs = zip(rows[1:], new[1:], strict=True)
        return _everywhere(Rows(caches, *(put(old, empty) for old, empty in pairs)))

    def _read(
        self, params: Params, rows: Rows, new: Newcomers, *, steps: Steps, fresh: bool
    ) -> tuple[Rows, Drawn]:
        """Read prompts, or a part of them, into rows, and draw the token that follows.

        Whatever the rows held before is forgotten where `fresh`.
        """
        now = Pass(
            jnp.asarray(new.rows),
            jnp.asarray(new.starts),
            jnp.asarray(new.counts),
            fresh=fresh,
            in_order=False,
        )
        tokens = constrain(jnp.asarray(new.tokens), "activation", "activation")
        logits, caches = self.model.bind(params).extend(tokens, rows.caches, now)
        options = jax.tree.map(jnp.asarray, new.options)
        first = jnp.zeros(tokens.shape[0], jnp.int32)
        past, bias = None, None
        if rows.past is not None:
            assert new.prompt is not None
            past = Past(jnp.asarray(new.prompt), jnp.zeros(new.prompt.shape, jnp.int32))
        if rows.bias is not None:
            assert new.bias is not None
            bias = jnp.asarray(new.bias)
        drawn = sample(logits, options, first, steps, past=past, bias=bias)
        if past is not None:
            past = past._replace(drawn=_counted(past.drawn, drawn.token))
        entering = Rows(
            caches, drawn.token, now.starts + now.counts, first + 1, options, past, bias
        )

        def put(old: jax.Array, entered: jax.Array) -> jax.Array:
            return old.at[now.rows].set(entered, mode="drop")

        kept = jax.tree.map(put, rows[1:], entering[1:])
        return _everywhere(Rows(caches, *kept)), _everywhere(drawn)

    def _step(
        self, params: Params, rows: Rows, active: jax.Array, *, steps: Steps
    ) -> tuple[Rows, Drawn]:
        """Read each active row's last token and draw the next; the others stay as they are."""
        n = rows.token.shape[0]
        counts = jnp.asarray(active).astype(jnp.int32)
        order = jnp.arange(n, dtype=jnp.int32)
        now = Pass(order, rows.length, counts, fresh=False, in_order=True)
        logits, caches = self.model.bind(params).extend(rows.token[:, None], rows.caches, now)
        drawn = sample(logits, rows.options, rows.drawn, steps, past=rows.past, bias=rows.bias)
        past = rows.past
        if past is not None:
            past = past._replace(drawn=_counted(past.drawn, drawn.token))
        moved = rows._replace(
            caches=caches,
            token=drawn.token,
            length=rows.length + counts,
            drawn=rows.drawn + counts,
            past=past,
        )
        return _everywhere(moved), _everywhere(drawn)


def row_options(requests: Sequence[SamplingOptions]) -> RowOptions:
    """Options of requests as host arrays."""

    def array(values: list[Any], dtype: Any) -> np.ndarray:
        return np.array(values, dtype)

    most = np.iinfo(np.int32).max
    return RowOptions(
        temperature=array([r.temperature for r in requests], np.float32),
        top_k=array([r.top_k or most for r in requests], np.int32),
        top_p=array([r.top_p for r in requests], np.float32),
        min_p=array([r.min_p for r in requests], np.float32),
        repetition=array([r.repetition_penalty for r in requests], np.float32),
        presence=array([r.presence_penalty for r in requests], np.float32),
        frequency=array([r.frequency_penalty for r in requests], np.float32),
        seed=array([r.seed % 2**32 for r in requests], np.uint32),
    )


def _counted(drawn: jax.Array, token: jax.Array) -> jax.Array:
    return drawn.at[jnp.arange(token.shape[0]), token].add(1)


def _everywhere(arrays: Any) -> Any:
    """What a row needs beside its caches whole on every device, so that each process reads all of it.

    Left alone, the compiler may lay 2 rows over 8 devices in a way that no sharding of the mesh can
    say, and the call fails.
    """
    if isinstance(arrays, Rows):
        return Rows(arrays.caches, *_everywhere(tuple(arrays[1:])))
    return jax.tree.map(lambda a: constrain(a, *["activation"] * a.ndim), arrays)
