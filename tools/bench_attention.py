"""Time and memory of attention's implementations, forward and backward, one JSON line per case.

    python tools/bench_attention.py
    python tools/bench_attention.py --lengths 4096 --heads 8 --kv-heads 2 --head-dim 64 --rounds 5

Each case compares, in one process and in turns so that what else the machine does falls on all alike:
the implementation that the chooser takes, the others that can run here, and
`jax.nn.dot_product_attention` (causal; it knows no segments). `ratio` is its time over the chosen
one's: the median of the rounds' ratios, in wall and in CPU seconds. Rows are one document each, and
with `--packed` documents of a quarter of the length, which jax then lets see each other.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maxlm.config.choices import AttentionKernel
from maxlm.kernels.attention.attend import AttentionSettings, attention
from maxlm.kernels.attention.choose import FEATURES, choose
from maxlm.kernels.attention.features import AttentionCall, hardware_of
from maxlm.parallel.accelerators import use_cpu_where_alone

JAX = "jax.nn.dot_product_attention"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--dtype", help="unset: float32 on a CPU, bfloat16 elsewhere")
    parser.add_argument("--window", type=int)
    parser.add_argument("--logit-cap", type=float)
    parser.add_argument("--packed", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    use_cpu_where_alone()
    for length in arguments.lengths:
        print(json.dumps(measure(length, arguments)), flush=True)


def measure(length: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time one shape."""
    hardware = hardware_of()
    dtype = arguments.dtype or ("float32" if hardware.platform == "cpu" else "bfloat16")
    call = AttentionCall(
        length=length,
        num_heads=arguments.heads,
        num_kv_heads=arguments.kv_heads,
        head_dim=arguments.head_dim,
        dtype=dtype,
        window=arguments.window,
        logit_cap=arguments.logit_cap,
    )
    choice = choose(call, hardware)
    inputs = _inputs(call, arguments)
    programs = {
        kernel.value: _compile(_ours(kernel, call), inputs)
        for kernel, features in FEATURES.items()
        if not features.lacking(call, hardware)
    }
    if call.logit_cap is None and call.window is None:
        programs[JAX] = _compile(_jax, inputs)
    wall: dict[str, list[float]] = {name: [] for name in programs}
    cpu: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(arguments.rounds):
        for name, program in programs.items():
            start, used = time.perf_counter(), time.process_time()
            jax.block_until_ready(program(*inputs))
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - used)
    chosen = choice.kernel.value
    return {
        "length": length,
        "batch_size": arguments.batch_size,
        "heads": call.num_heads,
        "kv_heads": call.num_kv_heads,
        "head_dim": call.head_dim,
        "dtype": dtype,
        "window": call.window,
        "logit_cap": call.logit_cap,
        "packed": arguments.packed,
        "chosen": chosen,
        "reason": choice.reason,
        "cases": {
            name: {
                "seconds": round(statistics.median(wall[name]), 6),
                "seconds_min_max": [round(min(wall[name]), 6), round(max(wall[name]), 6)],
                "cpu_seconds": round(statistics.median(cpu[name]), 6),
                "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
            }
            for name, program in programs.items()
        },
        "ratio": _ratio(wall, chosen),
        "cpu_ratio": _ratio(cpu, chosen),
        "device": hardware.kind,
        "jax": jax.__version__,
    }


def _ratio(seconds: dict[str, list[float]], chosen: str) -> float | None:
    if JAX not in seconds:
        return None
    pairs = zip(seconds[JAX], seconds[chosen], strict=True)
    return round(statistics.median(theirs / ours for theirs, ours in pairs), 2)


def _inputs(call: AttentionCall, arguments: argparse.Namespace) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    rows = arguments.batch_size

    def normal(heads: int) -> jax.Array:
        shape = (rows, call.length, heads, call.head_dim)
        return jnp.asarray(rng.normal(size=shape), call.dtype)

    document = call.length // 4 if arguments.packed else call.length
    segments = jnp.tile(jnp.arange(call.length, dtype=jnp.int32) // document + 1, (rows, 1))
    return normal(call.num_heads), normal(call.num_kv_heads), normal(call.num_kv_heads), segments


def _ours(kernel: AttentionKernel, call: AttentionCall) -> Any:
    features = {"window": call.window, "logit_cap": call.logit_cap}
    run = partial(attention, settings=AttentionSettings(forced=kernel), **features)
    return lambda query, key, value, segments: run(query, key, value, segment_ids=segments)


def _jax(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
    del segments
    return jax.nn.dot_product_attention(query, key, value, is_causal=True)


def _compile(function: Any, inputs: tuple[jax.Array, ...]) -> Any:
    """The compiled gradient of a function of the output, run once."""

    def loss(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
        return (function(query, key, value, segments).astype(jnp.float32) ** 2).sum()

    program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*inputs).compile()
    jax.block_until_ready(program(*inputs))
    return program


if __name__ == "__main__":
    main()
