"""The matmuls of a train step and nothing else, as the floor that `bench_cpu.py` compares with.

Per device and layer: every projection's forward, input-gradient and weight-gradient matmul, and
attention's two forward and four backward ones over the causal blocks that the step computes (not
over full squares, which would flatter the ratio); then the output projection's three. Random inputs,
no element-wise work, no collectives.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from maxlm.config.schema import ModelConfig
from maxlm.kernels.attention.blocks import block_size
from maxlm.model.decoder import padded_vocab


def matmul_seconds(
    config: ModelConfig, batch_size: int, length: int, mesh: Any, rounds: int
) -> dict[str, float]:
    """Median wall and CPU seconds of one step's matmuls, the batch split over the mesh's devices."""
    inputs = _inputs(config, batch_size // mesh.size, length)

    @partial(jax.shard_map, mesh=mesh, in_specs=P(), out_specs=P(mesh.axis_names), check_vma=False)
    def run(arrays: dict[str, jax.Array]) -> list[jax.Array]:
        return [jnp.ravel(x)[None] for x in _matmuls(config, arrays, length)]

    run = jax.jit(run)
    jax.block_until_ready(run(inputs))
    wall, cpu = [], []
    for _ in range(rounds):
        start, used = time.perf_counter(), time.process_time()
        jax.block_until_ready(run(inputs))
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    return {
        "matmul_seconds": round(statistics.median(wall), 5),
        "matmul_cpu_seconds": round(statistics.median(cpu), 5),
    }


def _projections(config: ModelConfig) -> list[tuple[int, int]]:
    """Input and output width of each projection of a block."""
    embed, head = config.embed_dim, config.head_dim
    queries, keys = config.num_heads * head, config.num_kv_heads * head
    ups = 2 if config.mlp.is_gated else 1
    return (
        [(embed, queries), (embed, keys), (embed, keys), (queries, embed)]
        + [(embed, config.mlp_dim)] * ups
        + [(config.mlp_dim, embed)]
    )


def _inputs(config: ModelConfig, rows: int, length: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    arrays = {}
    shapes = {(i, o) for i, o in _projections(config)}
    shapes.add((config.embed_dim, padded_vocab(config)))
    for inner, outer in shapes:
        layers = 1 if outer == padded_vocab(config) else config.num_layers
        arrays[f"w {inner} {outer}"] = normal(layers, inner, outer)
    for width in {w for shape in shapes for w in shape}:
        arrays[f"x {width}"] = normal(rows * length, width)
    for name in "qkv":
        arrays[name] = normal(rows, config.num_heads, length, config.head_dim)
    arrays["p"] = normal(rows, config.num_heads, min(block_size(length), length), length)
    return arrays


def _matmuls(config: ModelConfig, arrays: dict[str, jax.Array], length: int) -> list[jax.Array]:
    out = []
    for layer in range(config.num_layers):
        # A different scale per layer and use keeps XLA from merging equal matmuls.
        for index, (inner, outer) in enumerate(_projections(config)):
            weight = arrays[f"w {inner} {outer}"][layer] * (1 + index)
            out += _three(arrays[f"x {inner}"], weight, arrays[f"x {outer}"])
        out += _attention(arrays, length, 1.0 + layer)
    vocab = padded_vocab(config)
    weight = arrays[f"w {config.embed_dim} {vocab}"][0]
    return out + _three(arrays[f"x {config.embed_dim}"], weight, arrays[f"x {vocab}"])


def _three(x: jax.Array, weight: jax.Array, dy: jax.Array) -> list[jax.Array]:
    # The weight gradient depends on the weight's layer only through this scalar.
    return [x @ weight, dy @ weight.T, (x * weight[0, 0]).T @ dy]


def _attention(arrays: dict[str, jax.Array], length: int, scale: float) -> list[jax.Array]:
    query, key, value = (arrays[name] * scale for name in "qkv")
    out, block = [], block_size(length)
    for start in range(0, length, block):
        stop = min(start + block, length)
        q, k, v = query[:, :, start:stop], key[:, :, :stop], value[:, :, :stop]
        p = arrays["p"][:, :, : stop - start, :stop]
        out += [
            jnp.einsum("bhtc,bhsc->bhts", q, k),
            jnp.einsum("bhts,bhsc->bhtc", p, v),
            jnp.einsum("bhtc,bhsc->bhts", q, v),
            jnp.einsum("bhts,bhtc->bhsc", p, q),
            jnp.einsum("bhts,bhsc->bhtc", p, k),
            jnp.einsum("bhts,bhtc->bhsc", p, q * 2),
        ]
    return out
