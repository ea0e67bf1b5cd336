"""maxlm's side of `tools/bench_train.py`: one case in this process, one line of JSON.

The loop is the training loop's: each batch is placed on the mesh, steps are dispatched ahead of the
device, and at most 16 are in flight. In: a request of `bench_train.requests`.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

IN_FLIGHT = 16
BATCHES = 4


def main(request: dict[str, Any]) -> None:
    """Measure and print."""
    from maxlm.parallel.accelerators import use_cpu_where_alone
    from maxlm.parallel.host_memory import keep_freed_memory

    use_cpu_where_alone()
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        keep_freed_memory()
    import jax
    from bench_rows import make_batches, visible_share
    from train_program import build

    overrides = [*request["overrides"], f"data.batch_size={request['batch_size']}"]
    program = build(request["presets"], overrides, devices=jax.devices())
    config = program.config
    assert config.data.batch_size and config.model.vocab_size
    batches = make_batches(
        request["rows"],
        request["store"],
        length=config.data.length,
        batch_size=config.data.batch_size,
        count=BATCHES,
        vocab_size=config.model.vocab_size,
    )
    if request["exchange"]:
        _write_exchange(request["exchange"], program, batches)
    with jax.set_mesh(program.mesh):
        record = _measure(program, batches, request)
    shape = {
        "side": "maxlm",
        "model": request["presets"],
        "length": config.data.length,
        "batch_size": config.data.batch_size,
        "visible_share": round(visible_share(batches), 4),
        "mesh": _mesh(program),
        "attention": _attention(program),
        "told": program.told,
        "rematerialization": config.parallel.rematerialization.value,
        "precision": config.train.precision.value,
    }
    print(json.dumps(shape | record | _environment()), flush=True)


def _measure(program: Any, batches: list[Any], request: dict[str, Any]) -> dict[str, Any]:
    import jax

    state = program.fresh_state()
    jax.block_until_ready(state)
    # The first call compiles with this very lowering: what is timed here is not done twice.
    start = time.perf_counter()
    compiled = program.step.lower(program.layout, program.batch).compile()
    compile_seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()

    loop = _Loop(program, batches, state)
    first_loss = loop.run(1)
    first = time.time() - _process_start()
    last_loss = loop.run(3)
    estimate = min(_timed(loop, 1) for _ in range(2))
    steps = int(min(max(request["seconds"] / request["rounds"] / estimate, 1), 200))
    loop.dispatch, loop.place = [], []
    rounds = [_timed(loop, steps) for _ in range(request["rounds"])]
    seconds = statistics.median(rounds)
    return {
        **_speed(program, seconds),
        "step_seconds": seconds,
        "step_seconds_min_max": [min(rounds), max(rounds)],
        "steps_measured": steps * len(rounds),
        "compile_seconds": round(compile_seconds, 2),
        "first_step_seconds": round(first, 2),
        "dispatch_seconds": statistics.median(loop.dispatch),
        "place_seconds": statistics.median(loop.place),
        "peak_memory_bytes": _peak_memory(),
        "compiled_temporary_bytes": memory.temp_size_in_bytes if memory else None,
        "state_bytes": sum(x.nbytes for x in jax.tree.leaves(loop.state)),
        "loss": [first_loss, last_loss],
    }


def _timed(loop: _Loop, steps: int) -> float:
    """Seconds a step."""
    start = time.perf_counter()
    loop.run(steps)
    return (time.perf_counter() - start) / steps


class _Loop:
    """The training loop without what is not training."""

    def __init__(self, program: Any, batches: list[Any], state: Any):
        from maxlm.parallel.placement import local_rows

        self.program, self.batches, self.state = program, batches, state
        self.size = program.config.data.batch_size
        self.rows = local_rows(self.size, program.mesh)
        self.dispatch: list[float] = []
        self.place: list[float] = []
        self.step = 0

    def run(self, count: int) -> float:
        """Take steps and wait for the last; its loss in nats a token."""
        import jax

        from maxlm.parallel.placement import place_batch

        waiting: list[Any] = []
        for _ in range(count):
            batch = self.batches[self.step % len(self.batches)]
            if len(waiting) == IN_FLIGHT:
                waiting.pop(0).nll.block_until_ready()
            start = time.perf_counter()
            placed = place_batch(batch, self.size, self.rows, self.program.mesh)
            between = time.perf_counter()
            self.state, metrics = self.program.step(self.state, placed)
            self.dispatch.append(time.perf_counter() - between)
            self.place.append(between - start)
            waiting.append(metrics)
            self.step += 1
        jax.block_until_ready(self.state)
        return float(metrics.nll / metrics.weight)


def _speed(program: Any, seconds: float) -> dict[str, Any]:
    from maxlm.model.count import MFU_FORMULA, count_parameters, train_flops_per_token
    from maxlm.parallel.chips import chip_of

    config, mesh = program.config, program.mesh
    tokens = config.data.batch_size * config.data.length
    flops = train_flops_per_token(config.model, config.data.length) * tokens
    chip = chip_of(mesh.devices.flat[0].device_kind)
    peak = chip.peak / 1e12 if chip else None
    achieved = flops / seconds / mesh.size / 1e12
    return {
        "parameters": count_parameters(config.model),
        "tokens_per_second": round(tokens / seconds, 1),
        "model_tflops_per_second_per_device": round(achieved, 3),
        "peak_tflops": peak,
        "mfu": round(achieved / peak, 4) if peak else None,
        "mfu_formula": MFU_FORMULA,
    }


def _mesh(program: Any) -> str:
    from maxlm.config.mesh_axes import product_of

    return product_of(program.mesh.shape)


def _attention(program: Any) -> dict[str, str]:
    """Who computes attention, by span of the layers."""
    from maxlm.model.attention_choices import attention_choices

    model = program.model
    return attention_choices(
        model.config, model.execution, program.config.data.length, program.mesh
    )


def _peak_memory() -> int:
    """Most that one device held so far; on a CPU, the process."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(stats.get("peak_bytes_in_use", own))


def _environment() -> dict[str, Any]:
    import jax
    from jax.extend.backend import get_backend

    device = jax.devices()[0]
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    return {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "platform_version": get_backend().platform_version.splitlines()[0],
        "versions": {n: metadata.version(n) for n in ("jax", "jaxlib", "flax", "optax", "numpy")},
        "python": sys.version.split()[0],
        "commit": commit,
        "load_average": os.getloadavg()[0],
    }


def _write_exchange(path: str, program: Any, batches: list[Any]) -> None:
    """What the peer needs: the resolved config and the very batches."""
    config = program.config.model_dump(mode="json")
    Path(path + ".json").write_text(json.dumps(config))
    arrays = {name: np.stack([getattr(b, name) for b in batches]) for name in batches[0]._fields}
    np.savez(path + ".npz", **arrays)


def _process_start() -> float:
    """When this process started, in seconds since the epoch (from /proc)."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
