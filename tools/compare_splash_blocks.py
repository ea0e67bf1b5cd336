"""How long splash attention takes by its blocks, by the TPU compiler's schedules: one table for each chip.

    python tools/compare_splash_blocks.py v5e v5p v6e                     # a minute for each line
    python tools/compare_splash_blocks.py v6e --blocks 2048,512 --length 16384

A row of causal attention, forward and backward, is compiled ahead of time for one chip, and its kernels are
read as in a plan (`maxlm/plan/reading/kernel_schedule.py`): scheduled bundles × blocks that the mask leaves. What
XLA does beside the kernels is told as `other`. Blocks are `queries = keys,keys at once`.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from maxlm.kernels.attention import splash
from maxlm.plan.reading.read import Reading, read_program
from maxlm.plan.topology import parse_topology

DEFAULT = ["512,512", "1024,1024", "1024,512", "1024,256"]


def main() -> None:
    """Compile each choice for each chip and print what its kernels take."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("chips", nargs="+", metavar="CHIP")
    parser.add_argument("--blocks", nargs="+", default=DEFAULT, metavar="SIZE,AT_ONCE")
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    given = parser.parse_args()
    shape = (given.length, given.heads, given.kv_heads, given.head_dim)
    print("| chip | blocks | forward, ms | backward, ms | other, ms | all, ms | temporaries, MiB |")
    print("|---|---|---|---|---|---|---|")
    for chip in given.chips:
        for text in given.blocks:
            blocks = splash.Blocks(*map(int, text.split(",")))
            reading, temporaries = measure(chip, blocks, shape)
            forward = 1e3 * seconds(reading, "fwd")
            backward = 1e3 * (seconds(reading, "dq") + seconds(reading, "dkv"))
            whole = 1e3 * reading.time.total
            cells = [forward, backward, whole - forward - backward, whole]
            numbers = " | ".join(f"{n:.2f}" for n in cells)
            print(f"| {chip} | {text} | {numbers} | {temporaries >> 20} |", flush=True)


def measure(
    chip: str, blocks: splash.Blocks, shape: tuple[int, int, int, int]
) -> tuple[Reading, int]:
    """The reading of a program that attends over a row and back, and its bytes of temporaries."""
    topology = parse_topology(f"{chip}-8")
    mesh = Mesh(np.array(topology.devices()[:1]), ("x",), axis_types=(AxisType.Auto,))
    place = NamedSharding(mesh, PartitionSpec())
    length, heads, kv_heads, width = shape

    def array(*dims: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, length, *dims), dtype, sharding=place)

    def step(
        query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array, up: jax.Array
    ) -> Any:
        def attend(*given: jax.Array) -> jax.Array:
            return splash.splash_attention(*given, segment_ids, blocks=blocks)

        out, back = jax.vjp(attend, query, key, value)
        return out, back(up)

    rows = array(heads, width), array(kv_heads, width), array(kv_heads, width)
    lowered = jax.jit(step).lower(*rows, array(dtype=jnp.int32), array(heads, width))
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    return read_program(compiled.as_text(), chip=topology.chip), memory.temp_size_in_bytes


def seconds(reading: Reading, kernel: str) -> float:
    """Of the kernels whose name has a part."""
    return sum(o.seconds for o in reading.operations if o.kind == "kernel" and kernel in o.name)


if __name__ == "__main__":
    main()
