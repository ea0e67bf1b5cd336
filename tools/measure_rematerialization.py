"""What each rematerialisation policy costs and saves for a model: one JSON line per policy.

    python tools/measure_rematerialization.py                                 on this CPU, timed
    python tools/measure_rematerialization.py --topology v5p:2x2x1 --devices 1 \\
        --model models/llama3.2-1b --batch 8 --length 2048                    by the TPU compiler

Without a topology the train step runs here and is timed. With one, the real TPU compiler compiles it
ahead of time for a slice that need not exist: bytes on the device and in the host's memory, its own
estimate of cycles, and how often each Pallas kernel runs. Matmul FLOPs are counted in the traced
program, with everything that is computed again, and compared with those of `none`. `--table` prints
Markdown after the lines.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import time
from collections import Counter
from typing import Any

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jaxlib
from bench_rows import make_batches
from matmul_flops import matmul_flops
from train_program import TrainProgram, build

from maxlm.config.choices import Rematerialization
from maxlm.parallel.chips import chip_of
from maxlm.parallel.placement import local_rows, place_batch
from maxlm.plan.reading.kernels import seconds_by_rule
from maxlm.plan.reading.read import read_program
from maxlm.plan.topology import parse_topology

SMALL = (
    "model.num_layers=4",
    "model.embed_dim=256",
    "model.num_heads=4",
    "model.num_kv_heads=2",
    "model.head_dim=64",
    "model.mlp_dim=768",
    "model.vocab_size=512",
)


def main() -> None:
    """Measure the asked policies."""
    arguments = _parse()
    records = []
    for policy in arguments.policies:
        record = {"policy": policy, **measure(policy, arguments)}
        records.append(record)
        first = records[0]
        record["matmul_flops_ratio"] = round(record["matmul_flops"] / first["matmul_flops"], 4)
        print(json.dumps(record), flush=True)
    if arguments.table:
        print("\n" + table(records))


def _parse() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    policies = [policy.value for policy in Rematerialization]
    parser.add_argument("--policies", nargs="+", choices=policies, default=policies)
    parser.add_argument("--topology", help="such as v5p:2x2x1; unset: this CPU")
    parser.add_argument("--devices", type=int, help="of the topology; unset: all")
    parser.add_argument("--model", help="preset; unset: four layers of width 256")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", help="options")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps on a CPU")
    parser.add_argument("--table", action="store_true")
    return parser.parse_args()


def measure(policy: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One policy's record."""
    devices = topology_devices(arguments.topology, arguments.devices)
    overrides = [
        *(() if arguments.model else SMALL),
        f"data.length={arguments.length}",
        f"data.batch_size={arguments.batch}",
        # Unrolled, XLA merges what is computed again with what was kept.
        "parallel.scan_unroll=1",
        f"parallel.rematerialization={policy}",
        *arguments.set,
    ]
    program = build([arguments.model or "models/llama3-8b"], overrides, devices=devices)
    # Abstract: a kernel may make constants while it is traced, which no described device can.
    with jax.sharding.use_abstract_mesh(program.mesh.abstract_mesh):
        traced = program.step.trace(program.layout, program.batch)
        start = time.perf_counter()
        compiled = traced.lower().compile()
        seconds = time.perf_counter() - start
        memory = compiled.memory_analysis()
        record = {
            "model": arguments.model or "4 layers of width 256",
            "batch_size": arguments.batch,
            "length": arguments.length,
            "device": devices[0].device_kind,
            "devices": len(devices),
            "temporary_bytes": memory.temp_size_in_bytes,
            "host_temporary_bytes": memory.host_temp_size_in_bytes,
            "state_bytes": memory.argument_size_in_bytes,
            "matmul_flops": matmul_flops(traced.jaxpr.jaxpr),
            "compile_seconds": round(seconds, 1),
            "versions": {"jax": jax.__version__, "jaxlib": jaxlib.__version__},
        }
        if arguments.topology:
            return record | _estimated(compiled.as_text(), devices[0].device_kind)
        return record | _timed(program, arguments.rounds)


def topology_devices(topology: str | None, count: int | None) -> list[Any]:
    """Devices of a described TPU slice, or this CPU's."""
    if topology is None:
        return jax.devices()[: count or 1]
    return parse_topology(topology).devices()[:count]


def _estimated(text: str, device_kind: str) -> dict[str, Any]:
    chip = chip_of(device_kind)
    assert chip and chip.clock
    # Kernels are counted here, so how long they take need not be known well.
    operations = read_program(text, chip=chip, kernel_seconds=seconds_by_rule).operations
    estimated = [o for o in operations if o.estimated and o.kind != "kernel"]
    calls: Counter[str] = Counter()
    for operation in operations:
        if operation.kind == "kernel":
            calls[re.sub(r"[.\d]+$", "", operation.name)] += operation.times
    seconds = sum(o.seconds for o in estimated)
    matmuls = sum(o.seconds for o in estimated if o.kind == "matmul")
    return {
        "estimated_cycles": round(seconds * chip.clock),
        "estimated_matmul_cycles": round(matmuls * chip.clock),
        "estimated_seconds": round(seconds, 5),
        "kernel_calls": dict(calls),
    }


def _timed(program: TrainProgram, rounds: int) -> dict[str, Any]:
    config = program.config
    size = config.data.batch_size
    assert size and config.model.vocab_size
    (host,) = make_batches(
        "packed",
        None,
        length=config.data.length,
        batch_size=size,
        count=1,
        vocab_size=config.model.vocab_size,
    )
    batch = place_batch(host, size, local_rows(size, program.mesh), program.mesh)
    state, _ = program.step(program.fresh_state(), batch)
    jax.block_until_ready(state)
    wall, cpu = [], []
    for _ in range(rounds):
        start, used = time.perf_counter(), time.process_time()
        state, _ = program.step(state, batch)
        jax.block_until_ready(state)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    return {
        "step_seconds": round(statistics.median(wall), 4),
        "cpu_seconds": round(statistics.median(cpu), 4),
        "load_average": os.getloadavg()[0],
    }


def table(records: list[dict[str, Any]]) -> str:
    """Markdown, a row per policy."""
    timed = "cpu_seconds" in records[0]
    last = "CPU-seconds a step" if timed else "estimated Mcycles"
    lines = [
        f"| policy | temporaries, MB | in host memory, MB | matmul FLOPs | {last} | Pallas calls |",
        "|---|---|---|---|---|---|",
    ]
    for r in records:
        cost = f"{r['cpu_seconds']:.3f}" if timed else f"{r['estimated_cycles'] / 1e6:,.0f}"
        kernels = ", ".join(f"{n} × {name}" for name, n in r.get("kernel_calls", {}).items())
        cells = [
            f"`{r['policy']}`",
            f"{r['temporary_bytes'] / 1e6:,.0f}",
            f"{r['host_temporary_bytes'] / 1e6:,.0f}",
            f"{r['matmul_flops_ratio']:.3f}",
            cost,
            kernels or "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
