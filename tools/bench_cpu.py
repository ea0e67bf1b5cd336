"""Speed of maxlm's train step on this machine's CPU, one JSON line per case.

    python tools/bench_cpu.py                       every case
    python tools/bench_cpu.py --case nano --steps 100 --cpu-devices 2

Each line: tokens/s, seconds and CPU-seconds per step (median over rounds), time from process start
to the end of the first step, peak memory, and for the shapes that allow it the time of the bare
matmuls of the same step. A case runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CASES = {
    # nanoGPT's CPU model (its README): 4 layers, 4 heads, width 128, length 64, batch 12.
    "nano": {
        "model": {
            "vocab_size": 65,
            "num_layers": 4,
            "embed_dim": 128,
            "num_heads": 4,
            "num_kv_heads": 4,
            "head_dim": 32,
            "mlp_dim": 512,
            "mlp": "plain",
            "activation": "gelu",
            "norm": "layer",
            "norm_epsilon": 1e-5,
            "positions": "learned",
            "max_length": 64,
        },
        "length": 64,
        "batch_size": 12,
    },
    # The shape that MaxText was measured at.
    "maxtext": {
        "model": {
            "vocab_size": 8192,
            "num_layers": 4,
            "embed_dim": 256,
            "num_heads": 4,
            "num_kv_heads": 4,
            "head_dim": 64,
            "mlp_dim": 1024,
            "tie_embeddings": False,
        },
        "length": 512,
        "batch_size": 4,
    },
}
CASES["maxtext-remat"] = CASES["maxtext"] | {"rematerialization": "full"}


def main() -> None:
    """Run the asked cases, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--steps", type=int, default=20, help="steps per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-devices", type=int, default=os.cpu_count())
    parser.add_argument("--batch-size", type=int, help="rows; unset: the case's own")
    parser.add_argument("--matmuls", action="store_true", help="also time the bare matmuls")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(measure(arguments.inside, arguments)), flush=True)
        return
    for case in arguments.case or CASES:
        command = [sys.executable, __file__, "--inside", case, *sys.argv[1:]]
        subprocess.run(command, check=True)


def measure(name: str, arguments: argparse.Namespace) -> dict:
    """Time one case in this process."""
    from maxlm.parallel.host_memory import keep_freed_memory

    keep_freed_memory()
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", arguments.cpu_devices)
    case = CASES[name]
    batch_size = arguments.batch_size or case["batch_size"]
    steps = _Steps(case, batch_size)
    steps.advance(1)
    first = time.time() - _process_start()
    steps.advance(5)
    wall, cpu = [], []
    for _ in range(arguments.rounds):
        start, used = time.perf_counter(), time.process_time()
        steps.advance(arguments.steps)
        wall.append((time.perf_counter() - start) / arguments.steps)
        cpu.append((time.process_time() - used) / arguments.steps)
    seconds = statistics.median(wall)
    floor = {}
    if arguments.matmuls:
        import bare_matmuls

        floor = bare_matmuls.matmul_seconds(
            steps.config, batch_size, case["length"], steps.mesh, 3 * arguments.rounds
        )
        floor["matmul_share"] = round(floor["matmul_seconds"] / seconds, 3)
    return {
        "case": name,
        "cpu_devices": arguments.cpu_devices,
        "tokens_per_second": round(batch_size * case["length"] / seconds),
        "step_seconds": round(seconds, 5),
        "step_seconds_min_max": [round(min(wall), 5), round(max(wall), 5)],
        "cpu_seconds_per_step": round(statistics.median(cpu), 5),
        "first_step_seconds": round(first, 2),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "jax": jax.__version__,
        **floor,
    }


class _Steps:
    """Train steps of a case on one batch of random tokens."""

    def __init__(self, case: dict[str, Any], batch_size: int):
        from plain_step import plain_step

        from maxlm.config.schema import (
            ModelConfig,
            OptimizerConfig,
            ParallelConfig,
            Rematerialization,
            ScheduleConfig,
        )
        from maxlm.model.decoder import Execution
        from maxlm.model.definition import define
        from maxlm.parallel.mesh import make_mesh
        from maxlm.train.schedule import RateSchedule

        self.config = ModelConfig(**case["model"])
        execution = Execution(
            rematerialization=Rematerialization(case.get("rematerialization", "none")),
            # Unrolled, XLA merges what is computed again with what was kept: no rematerialisation.
            scan_unroll=1 if "rematerialization" in case else self.config.num_layers,
        )
        self.mesh = make_mesh(ParallelConfig(replica=-1, fsdp=1))
        self.batch = _random_batch(self.config.vocab_size, batch_size, case["length"])
        self.state, self.step = plain_step(
            define(self.config, execution),
            OptimizerConfig(learning_rate=1e-3),
            RateSchedule(ScheduleConfig(), warmup_steps=100, total_steps=2000),
            self.mesh,
        )

    def advance(self, count: int) -> None:
        """Take steps, few of them un-awaited, and await the last."""
        import jax

        from maxlm.parallel.placement import local_rows, place_batch

        rows = len(self.batch.tokens)
        local = local_rows(rows, self.mesh)
        with jax.set_mesh(self.mesh):
            for i in range(count):
                placed = place_batch(self.batch, rows, local, self.mesh)
                self.state, metrics = self.step(self.state, placed)
                if i % 8 == 7:
                    metrics.nll.block_until_ready()
            jax.block_until_ready(self.state)


def _random_batch(vocab_size: int, batch_size: int, length: int) -> Any:
    import numpy as np

    from maxlm.batch import Batch

    rng = np.random.default_rng(0)
    tokens = rng.integers(0, vocab_size, (batch_size, length + 1), dtype=np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (batch_size, 1))
    ones = np.ones((batch_size, length), np.int32)
    return Batch(tokens[:, :-1], tokens[:, 1:], ones.astype(np.float32), ones, positions)


def _process_start() -> float:
    """When this process started, in seconds since the epoch (from /proc)."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
