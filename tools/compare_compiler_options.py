"""What options of the TPU compiler change in a program: one JSON line per set of options.

    python tools/compare_compiler_options.py v5p:2x2x1 \\
        --options xla_tpu_scoped_vmem_limit_kib=65536 \\
        --options xla_enable_async_all_gather=true,xla_tpu_enable_async_collective_fusion_fuse_all_gather=true

The program, compiled ahead of time, is a gradient step of scanned gated MLPs whose weights lie over all
chips of the slice, 4096 tokens a chip. Each line says what the planner reads of it (`maxlm/plan/reading/read.py`):
cycles of compute, bytes of temporaries, what each kind of collective sends, and CPU-seconds of the compile. The first
line is without options. `--width 256 --mlp 512` takes seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from typing import Any

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maxlm.plan.reading.read import Reading, read_program
from maxlm.plan.topology import parse_topology


def main() -> None:
    """Compile without options, then with each set."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("topology")
    parser.add_argument("--options", action="append", default=[], metavar="name=value,…")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--mlp", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=4)
    arguments = parser.parse_args()
    lowered = lowered_step(arguments.topology, arguments.width, arguments.mlp, arguments.layers)
    for text in ["", *arguments.options]:
        options = dict(part.split("=", 1) for part in text.split(",") if part)
        began = time.process_time()
        compiled = lowered.compile(compiler_options=options)
        spent = time.process_time() - began
        chip = parse_topology(arguments.topology).chip
        assert chip.clock
        reading = read_program(compiled.as_text(), chip=chip)
        record: dict[str, Any] = {
            "topology": arguments.topology,
            "options": options,
            "compute_megacycles": round(reading.time.compute * chip.clock / 1e6, 3),
            "matmul_megacycles": round(reading.time.matmuls * chip.clock / 1e6, 3),
            "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
            "wire_megabytes": wire_megabytes(reading),
            "compile_cpu_seconds": round(spent, 1),
        }
        print(json.dumps(record), flush=True)


def wire_megabytes(reading: Reading) -> dict[str, float]:
    """What a device sends in a step, by kind of collective and whether anything runs meanwhile."""
    sent: dict[str, float] = defaultdict(float)
    for c in reading.collectives:
        sent[f"{c.kind}, {'overlapped' if c.is_overlapped else 'blocking'}"] += c.wire_bytes / 1e6
    return {key: round(value, 1) for key, value in sent.items()}


def lowered_step(topology: str, width: int, mlp: int, layers: int) -> Any:
    """Gradients of the scanned MLPs and their update, lowered for a slice."""
    devices = np.array(parse_topology(topology).devices())
    mesh = Mesh(devices, ("fsdp",), axis_types=(AxisType.Auto,))

    def array(shape: tuple[int, ...], spec: P, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    inward = array((layers, width, mlp), P(None, "fsdp"))
    weights = (inward, inward, array((layers, mlp, width), P(None, None, "fsdp")))
    tokens = array((4 * len(devices), 1024, width), P("fsdp"), jnp.bfloat16)
    places = jax.tree.map(lambda w: w.sharding, weights)
    return jax.jit(_step, donate_argnums=0, out_shardings=places).lower(weights, tokens)


def _step(weights: Any, tokens: jax.Array) -> Any:
    gradients = jax.grad(_loss)(weights, tokens)
    return jax.tree.map(lambda w, g: w - 1e-3 * g, weights, gradients)


def _loss(weights: Any, tokens: jax.Array) -> jax.Array:
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    block = jax.checkpoint(_block, prevent_cse=False, policy=policy)
    out, _ = jax.lax.scan(block, tokens, weights)
    return jnp.square(out.astype(jnp.float32)).mean()


def _block(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
    gate, up, down = (w.astype(x.dtype) for w in layer)
    return x + (jax.nn.silu(x @ gate) * (x @ up)) @ down, None


if __name__ == "__main__":
    main()
