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
from maxlm.config.choices import AttentionKernel, Quantization
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
from maxlm.kernels.linear import linear_output_major
from maxlm.model.attention import Context
from maxlm.model.balance import ModelLoss, with_routing
from maxlm.model.block import Block
from maxlm.model.cache import Cache, Pass, placed, ring_size
from maxlm.model.experts import ExpertProjection
from maxlm.model.lookup import lookup
from maxlm.model.norm import Norm
from maxlm.model.parameter import Initializer, Kind, declare, normal, padded_rows
from maxlm.model.projection import Projection
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
        stacked: whether repeated layers are one array and one scan; else each is by itself.
        output_major: whether kernels of linear maps are `[out, in]` and not `[in, out]`.
        quantization: of kernels of linear maps, but for routers and tables; None: none.
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
    stacked: bool = True
    output_major: bool = False
    quantization: Quantization | None = None

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
            # Caches are carried, so that a layer writes its tokens in place and nothing is copied.
            def group(carry: Any, slices: Any) -> tuple[Any, list[Load | None]]:
                x, caches = carry
                state, layer = slices
                written, loads = [], []
                blocks = nnx.merge(graph, state)
                for i, block in enumerate(blocks):
                    x, cache, load = block(
                        x, context, (caches[i], layer) if caches is not None else None
                    )
                    written.append(cache)
                    loads.append(load)
                return (x, written if caches is not None else None), loads

            group = rematerialized(group, execution.rematerialization)
            repeats = jax.tree.leaves(stacked)[0].shape[0]
            layers = jnp.arange(repeats) if caches is not None else None
            unroll = min(execution.scan_unroll, repeats)
            (x, caches), loads = jax.lax.scan(group, (x, caches), (stacked, layers), unroll=unroll)
            return x, (caches, loads)

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
            [Segment(config, p, n, rngs, execution) for p, n in _plan(config, execution)]
        )
        self.final_norm = Norm(config, config.embed_dim, rngs, dtype)
        self.head = None if config.tie_embeddings else table(vocab, "vocab", Kind.HEAD, table_init)
        for _, module in list(nnx.iter_modules(self)):
            if execution.output_major and isinstance(module, Projection):
                module.turn()
            if execution.quantization and isinstance(module, Projection | ExpertProjection):
                module.quantize(execution.quantization)

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
        self, tokens: jax.Array, caches: list[list[Cache]], now: Pass
    ) -> tuple[jax.Array, list[list[Cache]]]:
        """Read tokens after what the caches hold; logits of each row's last token.

        Args:
            tokens: `[P, T]` int32, texts first and padding after them.
            caches: per segment and block of its group, from `empty_caches`.
            now: which rows these tokens are of, and from where on.

        Returns:
            Float32 logits `[P, vocab_size]` and the caches with the tokens written.
        """
        length = tokens.shape[1]
        positions, segments = now.positions(length), now.segment_ids(length)
        rope, local = self._rope(positions)
        # Whatever kernel training was told to use may not do for a prompt's length.
        settings = AttentionSettings(hardware=self.execution.hardware)
        context = Context(segments, rope, now, settings=settings, local_rope=local)
        hidden, written, _ = self._hidden(tokens, positions, context, caches)
        assert written is not None
        last = jnp.maximum(now.counts - 1, 0)[:, None, None]
        return self._logits(jnp.take_along_axis(hidden, last, 1))[:, 0], placed(written)

    def empty_caches(
        self, batch_size: int, length: int, longest_pass: int = 1
    ) -> list[list[Cache]]:
        """Caches for rows of up to `length` tokens, per segment and block of its group.

        Args:
            batch_size: rows.
            length: most tokens that one comes to hold.
            longest_pass: most tokens that are read at once into a row that holds some.
        """
        dtype = self.execution.compute_dtype

        def empty(repeats: int, block: Block) -> Cache:
            size = ring_size(length, block.attention.window, longest_pass)
            shapes = block.attention.key_shape, block.attention.value_shape
            return Cache(*(jnp.zeros((repeats, batch_size, k, size, w), dtype) for k, w in shapes))

        return placed([[empty(s.repeats, block) for block in s.blocks] for s in self.segments])

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
        return Context(segments, rope, None, method, settings, turns, local_rope=local)

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
        table = self._output_table().astype(hidden.dtype)
        wide = jnp.promote_types(hidden.dtype, jnp.float32)
        if self.execution.output_major:
            logits = linear_output_major(hidden, table, 1).astype(wide)
        else:
            logits = jnp.einsum("btd,vd->btv", hidden, table, preferred_element_type=wide)
        # Padding is cut off the logits: cut off the table, which is far larger, it would be a copy.
        logits = logits[..., : self.config.vocab_size]
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


def _plan(config: ModelConfig, execution: Execution) -> list[tuple[tuple[Layer, ...], int]]:
    if execution.stacked:
        return segment_plan(config)
    return [((layer,), 1) for layer in layers_of(config)]


def _periodic(layers: list[Layer], period: int) -> list[tuple[tuple[Layer, ...], int]]:
    repeats, rest = divmod(len(layers), period)
    plan = [(tuple(layers[:period]), repeats)] if repeats else []
    return plan + ([(tuple(layers[-rest:]), 1)] if rest else [])
