"""The one decoder: embeddings, segments of scanned blocks, final norm, output projection, loss.

A model is a list of segments; a segment is a group of blocks (the pattern of local and global
layers) repeated, its parameters stacked and run by one scan, so that compile time does not grow
with depth. A remainder that does not fill the pattern is a segment of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maxlm.batch import Batch
from maxlm.config.choices import AttentionKernel
from maxlm.config.expert_layers import Layer, layers_of
from maxlm.config.schema import (
    AttentionSpan,
    ContextAttention,
    ModelConfig,
    PositionKind,
    Rematerialization,
)
from maxlm.kernels.attention.attend import AttentionSettings
from maxlm.kernels.attention.features import Hardware
from maxlm.kernels.context.order import from_zigzag, to_zigzag
from maxlm.kernels.cross_entropy import cross_entropy
from maxlm.kernels.experts.dispatch import ExpertKernels
from maxlm.model.attention import Cache, Context
from maxlm.model.balance import ModelLoss, with_routing
from maxlm.model.block import Block
from maxlm.model.lookup import lookup
from maxlm.model.norm import Norm
from maxlm.model.parameter import Initializer, Kind, declare, normal, padded_rows
from maxlm.model.rematerialization import kept_of_tick, rematerialized
from maxlm.model.rope import Angles, rope_angles
from maxlm.model.router import Load
from maxlm.parallel.axes import length_shards
from maxlm.parallel.pipeline import pipelined
from maxlm.parallel.stages import Stages


@dataclass(frozen=True)
class Execution:
    """How a model is computed, which does not change what it is.

    Attributes:
        compute_dtype: dtype of activations and of the weights inside a matmul.
        param_dtype: dtype of the master weights.
        rematerialization: what the backward pass computes again.
        scan_unroll: groups of blocks per scan iteration.
        loss_chunk: tokens of a device whose logits exist at once; None: all.
        context_attention: how attention works where rows lie over several devices.
        attention: who computes attention.
        hardware: what the program is compiled for; None: this machine's first device.
        experts: which kernels compute experts.
        stages: of a pipeline, which hold the layers; None: every device computes all layers.
    """

    compute_dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    rematerialization: Rematerialization = Rematerialization.NONE
    scan_unroll: int = 1
    loss_chunk: int | None = None
    context_attention: ContextAttention = ContextAttention.ALL_GATHER
    attention: AttentionKernel = AttentionKernel.AUTO
    hardware: Hardware | None = None
    experts: ExpertKernels = field(default_factory=ExpertKernels)
    stages: Stages | None = None

    @property
    def attention_settings(self) -> AttentionSettings:
        """What decides who computes attention."""
        return AttentionSettings(self.attention, self.hardware)


class Segment(nnx.Module):
    """A group of blocks, repeated; every parameter has a leading `layers` dim."""

    def __init__(
        self,
        config: ModelConfig,
        pattern: tuple[Layer, ...],
        repeats: int,
        rngs: nnx.Rngs,
        execution: Execution,
    ):
        self.repeats = repeats

        def stack(layer: Layer) -> Block:
            @nnx.split_rngs(splits=repeats)
            @nnx.vmap(in_axes=0, out_axes=0)
            def create(rngs: nnx.Rngs) -> Block:
                return Block(config, layer, rngs, execution.param_dtype, execution.experts)

            return create(rngs)

        self.blocks = nnx.List([stack(layer) for layer in pattern])

    def __call__(
        self,
        x: jax.Array,
        context: Context,
        caches: list[Cache] | None,
        execution: Execution,
    ) -> tuple[jax.Array, tuple[Any, list[Load | None]]]:
        """Run every repeat on `x [B, T, D]`; caches and loads have a leading `layers` dim too."""
        graph, stacked = nnx.split(self.blocks)

        def run(
            stacked: Any, x: jax.Array, context: Context, caches: list[Cache] | None = None
        ) -> tuple[jax.Array, Any]:
            def group(x: jax.Array, slices: Any) -> tuple[jax.Array, Any]:
                state, cached = slices
                blocks = nnx.merge(graph, state)
                written, loads = [], []
                for i, block in enumerate(blocks):
                    x, cache, load = block(x, context, cached[i] if cached is not None else None)
                    written.append(cache)
                    loads.append(load)
                return x, (written if cached is not None else None, loads)

            group = rematerialized(group, execution.rematerialization)
            unroll = min(execution.scan_unroll, jax.tree.leaves(stacked)[0].shape[0])
            return jax.lax.scan(group, x, (stacked, caches), unroll=unroll)

        stages = execution.stages
        if stages is None:
            return run(stacked, x, context, caches)
        if caches is not None:  # one token after the other: there is nothing to overlap
            return run(jax.tree.map(stages.to_layer_order, stacked), x, context, caches)

        def piece(stacked: Any, x: jax.Array, context: Context) -> tuple[jax.Array, Any]:
            x, (_, loads) = run(stacked, x, context)
            return x, loads

        policy = kept_of_tick(execution.rematerialization)
        axes = ("length", "activation")
        x, loads = pipelined(stages, piece, stacked, x, context, axes=axes, policy=policy)
        return x, (None, loads)


class Decoder(nnx.Module):
    """A causal language model."""

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs):
        assert config.vocab_size
        self.config = config
        self.execution = execution
        dtype = execution.param_dtype
        vocab = padded_vocab(config)
        table_init = padded_rows(normal(config.init_std), config.vocab_size)

        def table(rows: int, row_axis: str, kind: Kind, init: Initializer) -> nnx.Param:
            inputs = ("table_embed",) if kind is Kind.HEAD else ()
            axes = (row_axis, "table_embed")
            shape = (rows, config.embed_dim)
            return declare(rngs, shape, axes=axes, kind=kind, init=init, inputs=inputs, dtype=dtype)

        self.embedding = table(vocab, "vocab", Kind.EMBEDDING, table_init)
        learned = config.positions is PositionKind.LEARNED
        self.positions = (
            table(config.max_length or 0, "position", Kind.EMBEDDING, normal(config.init_std))
            if learned
            else None
        )
        self.embed_norm = Norm(config, config.embed_dim, rngs, dtype) if config.embed_norm else None
        self.segments = nnx.List(
            [Segment(config, p, n, rngs, execution) for p, n in segment_plan(config)]
        )
        self.final_norm = Norm(config, config.embed_dim, rngs, dtype)
        self.head = None if config.tie_embeddings else table(vocab, "vocab", Kind.HEAD, table_init)

    def loss(self, batch: Batch, *, z_loss: float = 0.0) -> ModelLoss:
        """Sums over a batch of the loss and of its weights, without materialised logits."""
        assert self.config.vocab_size
        if self._is_zigzag(batch):
            batch = to_zigzag(batch)
        hidden, _, loads = self._hidden(batch.tokens, batch.positions, self._context(batch), None)
        sums = cross_entropy(
            hidden,
            self._output_table(),
            batch.targets,
            batch.loss_weights,
            vocab_size=self.config.vocab_size,
            logit_cap=self.config.output_logit_cap,
            z_loss=z_loss,
            chunk=self.execution.loss_chunk,
        )
        return with_routing(sums, loads, self.config)

    def logits(self, batch: Batch) -> jax.Array:
        """Logits `[B, T, vocab_size]` in float32, of every token (for tests and small models)."""
        zigzag = self._is_zigzag(batch)
        if zigzag:
            batch = to_zigzag(batch)
        hidden, _, _ = self._hidden(batch.tokens, batch.positions, self._context(batch), None)
        return self._logits(from_zigzag(hidden) if zigzag else hidden)

    def extend(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        caches: list[list[Cache]],
        key_segments: jax.Array,
        offset: jax.Array,
    ) -> tuple[jax.Array, list[list[Cache]]]:
        """Read `tokens [B, T]` after what the caches hold; logits of the last token.

        Args:
            tokens: `[B, T]` int32.
            positions: `[B, T]` int32.
            segment_ids: `[B, T]` int32, 1 for text and 0 for padding.
            caches: per segment and block of its group, from `empty_caches`.
            key_segments: `[B, S]` segments of the whole cache, current tokens included.
            offset: how many tokens the caches hold.

        Returns:
            Float32 logits `[B, vocab_size]` and the caches with the tokens written.
        """
        rope, local = self._rope(positions)
        context = Context(segment_ids, rope, key_segments, offset, local_rope=local)
        hidden, written, _ = self._hidden(tokens, positions, context, caches)
        assert written is not None
        return self._logits(hidden[:, -1:])[:, 0], written

    def empty_caches(self, batch_size: int, length: int) -> list[list[Cache]]:
        """Caches for `length` tokens, per segment and block: `[L, B, S, K, C]`, `[L, B, S, K, V]`."""
        dtype = self.execution.compute_dtype

        def empty(repeats: int, block: Block) -> Cache:
            shapes = block.attention.key_shape, block.attention.value_shape
            return Cache(*(jnp.zeros((repeats, batch_size, length, *s), dtype) for s in shapes))

        return [[empty(s.repeats, block) for block in s.blocks] for s in self.segments]

    def _is_zigzag(self, batch: Batch) -> bool:
        """Whether tokens lie in another order inside the model, see `kernels/context/order.py`."""
        ring = self.execution.context_attention is ContextAttention.RING
        return ring and length_shards(batch.tokens.shape[1]) > 1

    def _context(self, batch: Batch) -> Context:
        segments, (rope, local) = batch.segment_ids, self._rope(batch.positions)
        turns = None
        if self.config.capacity_factor is not None:
            # Document by document, whatever the order in which a mesh keeps a row's tokens.
            turns = segments * segments.shape[1] + batch.positions
        run = self.execution
        settings = run.attention_settings
        method = run.context_attention
        return Context(segments, rope, segments, 0, method, settings, turns, local_rope=local)

    def _hidden(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        context: Context,
        caches: list[list[Cache]] | None,
    ) -> tuple[jax.Array, list[list[Cache]] | None, dict[str, Load]]:
        x = lookup(self.embedding[...], tokens, self.execution.compute_dtype)  # [B, T, D]
        if self.config.embed_scale is not None:
            x = x * jnp.asarray(self.config.embed_scale, x.dtype)
        if self.positions is not None:
            x = x + lookup(self.positions[...], positions, x.dtype)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        written, loads = [], {}
        for i, segment in enumerate(self.segments):
            cached = caches[i] if caches else None
            x, (cache, of_blocks) = segment(x, context, cached, self.execution)
            written.append(cache)
            for j, load in enumerate(of_blocks):
                if load is not None:  # by the name that its router has among the parameters
                    loads[f"segments.{i}.blocks.{j}.mlp.router"] = load
        return self.final_norm(x), written if caches else None, loads

    def _output_table(self) -> jax.Array:
        return (self.embedding if self.head is None else self.head)[...]

    def _logits(self, hidden: jax.Array) -> jax.Array:
        table = self._output_table()[: self.config.vocab_size].astype(hidden.dtype)
        wide = jnp.promote_types(hidden.dtype, jnp.float32)
        logits = jnp.einsum("btd,vd->btv", hidden, table, preferred_element_type=wide)
        cap = self.config.output_logit_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def _rope(self, positions: jax.Array) -> tuple[Angles | None, Angles | None]:
        """Rotations of all layers, and those of local layers where they have their own."""
        c = self.config
        if c.positions is not PositionKind.ROPE:
            return None, None
        own = c.rope_local_theta is not None and AttentionSpan.LOCAL in c.attention_pattern
        local = rope_angles(c, positions, local=True) if own else None
        return rope_angles(c, positions), local


def padded_vocab(config: ModelConfig) -> int:
    """Rows of the embedding table: the vocabulary up to a multiple that no mesh changes."""
    assert config.vocab_size
    return -(-config.vocab_size // config.vocab_multiple) * config.vocab_multiple


def segment_plan(config: ModelConfig) -> list[tuple[tuple[Layer, ...], int]]:
    """Groups and repeats: the dense layers before experts, then the rest, `[(group, n), …]`.

    Each of the two is repeats of its pattern and a remainder that does not fill one.
    """
    layers = layers_of(config)
    attention = math.lcm(len(config.attention_pattern), len(config.rope_pattern))
    if config.num_experts is None:
        return _periodic(layers, attention)
    first, rest = layers[: config.dense_layers], layers[config.dense_layers :]
    return _periodic(first, attention) + _periodic(rest, math.lcm(attention, config.expert_every))


def _periodic(layers: list[Layer], period: int) -> list[tuple[tuple[Layer, ...], int]]:
    repeats, rest = divmod(len(layers), period)
    plan = [(tuple(layers[:period]), repeats)] if repeats else []
    return plan + ([(tuple(layers[-rest:]), 1)] if rest else [])
