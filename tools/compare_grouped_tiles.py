"""How long experts' grouped matmuls take by their tiles, by the TPU compiler's schedules: a table by chip.

    python tools/compare_grouped_tiles.py v5p v5e v6e                    # about a minute for each line
    python tools/compare_grouped_tiles.py v5p --tile-rows 256 --rows 131072

Maps of `--depth` to `--columns` (qwen3-30b-a3b's up projection) and back, forward and backward, are compiled ahead of
time for one chip, and their kernels are read as in a plan: scheduled bundles × tiles that the groups visit. The last
column is what of the chip's peak the matmuls' own FLOPs are.
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
from jax.sharding import SingleDeviceSharding

from maxlm.kernels.grouped_matmul import megablox
from maxlm.plan.reading.read import Reading, read_program
from maxlm.plan.topology import parse_topology


def main() -> None:
    """Compile each choice for each chip and print what its kernels take."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("chips", nargs="+", metavar="CHIP")
    parser.add_argument("--tile-rows", nargs="+", type=int, default=[128, 256, 512])
    parser.add_argument("--rows", type=int, default=65536)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--depth", type=int, default=2048)
    parser.add_argument("--columns", type=int, default=768)
    given = parser.parse_args()
    print(
        "| chip | rows of a tile | up, ms | up backward, ms | down, ms | down backward, ms | of the peak |"
    )
    print("|---|---|---|---|---|---|---|")
    for chip in given.chips:
        peak = parse_topology(f"{chip}-8").chip.peak
        for rows in given.tile_rows:
            megablox.ROWS = rows
            cells, whole = [], 0.0
            for depth, columns in ((given.depth, given.columns), (given.columns, given.depth)):
                reading = measure(chip, given.rows, given.experts, depth, columns)
                times = [(o.name, o.seconds) for o in reading.operations if o.kind == "kernel"]
                forward = sum(seconds for name, seconds in times if "transpose" not in name)
                both = sum(seconds for _, seconds in times)
                cells += [1e3 * forward, 1e3 * (both - forward)]
                whole += both
            flops = 2 * 3 * 2.0 * given.rows * given.depth * given.columns
            numbers = " | ".join(f"{cell:.2f}" for cell in cells)
            print(f"| {chip} | {rows} | {numbers} | {flops / peak / whole:.2f} |", flush=True)


def measure(chip: str, rows: int, groups: int, depth: int, columns: int) -> Reading:
    """The reading of a program that multiplies rows with their groups' matrices, and back."""
    topology = parse_topology(f"{chip}-8")
    place = SingleDeviceSharding(topology.devices()[0])

    def array(*dims: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dims, dtype, sharding=place)

    def step(x: jax.Array, weights: jax.Array, sizes: jax.Array, up: jax.Array) -> Any:
        out, back = jax.vjp(lambda *given: megablox.megablox(*given, sizes), x, weights)
        return out, back(up)

    shapes = array(rows, depth), array(groups, depth, columns), array(groups, dtype=jnp.int32)
    lowered = jax.jit(step).lower(*shapes, array(rows, columns))
    return read_program(lowered.compile().as_text(), chip=topology.chip)


if __name__ == "__main__":
    main()
