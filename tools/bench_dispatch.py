"""What a step costs the host: the time a call of a jitted step takes before it returns.

    python tools/bench_dispatch.py
    python tools/bench_dispatch.py --preset models/llama3-70b --arrays 100 500 --cpu-devices 4

The device's work is left out as far as can be: a step that adds one to each array of a train state
with a preset's parameter names and count but tiny shapes, waited for before the next call. One JSON
line for the preset's state (its layers stacked, AdamW's moments beside them), for one with every
layer's parameters apart, and for each number of arrays: milliseconds until the call returns, and
until its result is there, which bounds the former from above whatever thread does the work. Median,
fastest and slowest tenth. Every array is sharded over the devices, as `fsdp` does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maxlm.batch import Batch
from maxlm.config.derive import resolve_model
from maxlm.config.load import load_config
from maxlm.config.schema import OptimizerConfig, ParallelConfig
from maxlm.model.definition import define
from maxlm.model.parameter import Kind, ParameterInfo
from maxlm.parallel.accelerators import use_cpu_where_alone
from maxlm.parallel.axes import sharding
from maxlm.parallel.mesh import make_mesh
from maxlm.parallel.placement import local_rows, place_batch
from maxlm.train.optimizer import make_optimizer
from maxlm.train.state import TrainState

TINY = 8  # elements of each array; the devices have to divide it
_DECLARED = ParameterInfo(shape=(TINY,), axes=("vector",), kind=Kind.VECTOR, inputs=())


def main() -> None:
    """Measure what is asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="models/llama3-8b")
    parser.add_argument("--arrays", type=int, nargs="*", default=[500], help="plain dicts")
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--cpu-devices", type=int, default=1, choices=[1, 2, 4, 8])
    arguments = parser.parse_args()
    use_cpu_where_alone()
    jax.config.update("jax_num_cpu_devices", arguments.cpu_devices)
    names = parameter_names(arguments.preset)
    layers = load_config(arguments.preset).model.num_layers
    states: dict[str, Any] = {
        "stacked": state_of(names),
        "layers apart": state_of([n for name in names for n in _apart(name, layers)]),
    }
    for count in arguments.arrays:
        states[f"dict of {count}"] = {f"array.{i}": jnp.zeros(TINY) for i in range(count)}
    for case, state in states.items():
        print(json.dumps(record(case, arguments, state)), flush=True)


def record(case: str, arguments: argparse.Namespace, state: Any) -> dict[str, Any]:
    """One line: the step's call and the placing of its batch."""
    mesh = make_mesh(ParallelConfig(), jax.devices())
    tokens = np.ones((8, 128), np.int32)
    host = Batch(tokens, tokens, tokens.astype(np.float32), tokens, tokens)
    rows = local_rows(8, mesh)
    place = milliseconds(lambda: place_batch(host, 8, rows, mesh), arguments.calls)
    batch = place_batch(host, 8, rows, mesh)
    shardings = jax.tree.map(lambda x: sharding(mesh, ("embed",) if x.ndim else ()), state)
    state = jax.device_put(state, shardings)
    step = jax.jit(_add_one, donate_argnums=0, out_shardings=(shardings, None))

    def call() -> Any:
        nonlocal state
        state, _ = step(state, batch)
        return state

    with jax.set_mesh(mesh):
        dispatch = milliseconds(call, arguments.calls)
        waited = milliseconds(lambda: jax.block_until_ready(call()), arguments.calls)
    return {
        "case": case,
        "preset": arguments.preset,
        "arrays": len(jax.tree.leaves(state)),
        "dispatch_ms": dispatch,
        "dispatch_and_wait_ms": waited,
        "place_batch_ms": place,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "load_average": os.getloadavg()[0],
    }


def milliseconds(call: Callable[[], Any], calls: int) -> dict[str, float]:
    """Time until `call` returns, its result waited for outside of the time."""
    times = []
    for _ in range(calls + 20):
        start = time.perf_counter()
        result = call()
        times.append((time.perf_counter() - start) * 1e3)
        jax.block_until_ready(result)
    deciles = statistics.quantiles(times[20:], n=10)
    shown = {"median": statistics.median(times[20:]), "fast": deciles[0], "slow": deciles[-1]}
    return {name: round(value, 4) for name, value in shown.items()}


def parameter_names(preset: str) -> list[str]:
    """Canonical names of a preset's parameters."""
    config = load_config(preset)
    vocab_size = config.model.vocab_size or 257
    model = resolve_model(config.model, vocab_size=vocab_size, length=config.data.length)
    return list(define(model).parameters)


def state_of(names: list[str]) -> TrainState:
    """A train state with AdamW's moments, every array tiny."""
    params = {name: jnp.zeros(TINY) for name in names}
    shape = {name: _DECLARED for name in names}
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3), shape)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        skipped=jnp.copy(zero),
        params=params,
        variables={},
        average={},
        opt_state=optimizer.init(params),
    )


def _apart(name: str, layers: int) -> list[str]:
    return [f"{name}.{i}" for i in range(layers)] if name.startswith("segments.") else [name]


def _add_one(state: Any, batch: Batch) -> tuple[Any, Any]:
    return jax.tree.map(lambda x: x + 1, state), batch.loss_weights[0, 0]


if __name__ == "__main__":
    main()
