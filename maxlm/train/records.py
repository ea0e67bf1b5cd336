"""The records of a run: what each holds, and the writer that passes them to display and sinks."""

from __future__ import annotations

import importlib.metadata
import math
import resource
import sys
import time
from collections.abc import Iterable
from typing import Any

import jax

from maxlm import __version__
from maxlm.model.attention_choices import attention_choices
from maxlm.model.balance import RoutingMetrics
from maxlm.model.count import (
    MFU_FORMULA,
    count_parameters,
    train_flops_per_token,
    widest_mlp,
)
from maxlm.parallel.chips import chip_of
from maxlm.parallel.links import link_warnings
from maxlm.parallel.stages import check_microbatches
from maxlm.train.clock import Clock
from maxlm.train.display import Display
from maxlm.train.setup import Run
from maxlm.train.sinks import Sink
from maxlm.train.step import StepMetrics


class RecordWriter:
    """Stamps records with the time and passes them on; remembers the newest of each kind."""

    def __init__(self, sinks: Iterable[Sink], display: Display | None):
        self._sinks = list(sinks)
        self._display = display
        self.newest: dict[str, dict[str, Any]] = {}

    def write(self, record: dict[str, Any]) -> None:
        """Pass a record on."""
        record = {"time": time.time(), **record}
        key = f"eval {record['set']}" if record["kind"] == "eval" else record["kind"]
        self.newest[key] = record
        for sink in self._sinks:
            sink.write(record)
        if self._display is not None:
            self._display.write(record)

    def message(self, text: str) -> None:
        """Tell the user something."""
        if self._display is not None:
            self._display.message(text)

    def close(self) -> None:
        """Flush and finish everything."""
        try:
            for sink in self._sinks:
                sink.close()
        finally:
            if self._display is not None:
                self._display.close()


def start_record(run: Run, resumed_from: int | None) -> dict[str, Any]:
    """What a run is, written when it starts or continues."""
    devices = run.mesh.devices.flatten()
    step = run.timeline.at_step(resumed_from or 0)
    return {
        "kind": "start",
        "step": resumed_from or 0,
        "resumed_from": resumed_from,
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "mesh": {axis: size for axis, size in run.mesh.shape.items() if size > 1},
        "link_warnings": link_warnings(run.mesh.devices, widest_mlp(run.config.model)),
        "pipeline": _pipeline(run, step.batch_size),
        "processes": jax.process_count(),
        "attention": attention_choices(
            run.config.model, run.model.execution, step.length, run.mesh
        ),
        "parameters": count_parameters(run.config.model),
        "flops_per_token": train_flops_per_token(run.config.model, step.length),
        "mfu_formula": MFU_FORMULA,
        "peak_tflops_per_device": _peak_tflops(devices[0]),
        "versions": _versions(),
        "command": " ".join(sys.argv),
        "total_steps": run.timeline.total_steps,
        "total_tokens": run.timeline.total_tokens,
        "tokens_per_step": step.tokens,
        "config": run.config.model_dump(mode="json"),
        "derived": [{"key": d.key, "value": str(d.value), "rule": d.rule} for d in run.derived],
        "data": run.loader.summary(),
    }


def train_record(
    run: Run,
    step: int,
    window: list[StepMetrics],
    clock: Clock,
) -> dict[str, Any]:
    """Numbers of the steps since the last record.

    Args:
        run: the run.
        step: steps taken.
        window: host values of each step's metrics, the last one of `step`.
        clock: where the time went; its next split begins here.
    """
    seconds = clock.split()
    nll = math.fsum(float(m.nll) for m in window)
    weight = math.fsum(float(m.weight) for m in window)
    size = math.fsum(float(m.target_bytes) for m in window)
    first, now = run.timeline.at_step(step - len(window)), run.timeline.at_step(step)
    tokens = now.tokens_before - first.tokens_before
    # Evaluation is no part of training's speed; waiting for data or a save is.
    busy = max(seconds["total"] - seconds["eval"], 1e-9)
    devices = run.mesh.size
    flops = train_flops_per_token(run.config.model, first.length)
    tokens_per_second, step_seconds = clock.speed.add(len(window), tokens, busy)
    tflops = tokens_per_second * flops / devices / 1e12
    peak = _peak_tflops(run.mesh.devices.flat[0])
    last = window[-1]
    record = {
        "kind": "train",
        "step": step,
        "tokens": now.tokens_before,
        "loss": nll / weight if weight else math.nan,
        "bits_per_byte": nll / math.log(2) / size if size else math.nan,
        "grad_norm": float(last.grad_norm),
        "param_norm": float(last.param_norm),
        "learning_rate": float(last.rate) * (run.config.optimizer.learning_rate or 0.0),
        "tokens_per_second": tokens_per_second,
        "tokens_per_second_per_device": tokens_per_second / devices,
        "tflops_per_device": tflops,
        "mfu": tflops / peak if peak else None,
        "step_seconds": step_seconds,
        "compute_seconds": seconds["compute"],
        "data_wait_seconds": seconds["data_wait"],
        "save_wait_seconds": seconds["save_wait"],
        "eval_seconds": seconds["eval"],
        "device_memory_bytes": _device_memory(run),
        "host_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "skipped_steps": int(last.skipped),
        "elapsed_seconds": clock.elapsed,
    }
    return record | _routing([m.routing for m in window if m.routing is not None])


def _routing(window: list[RoutingMetrics]) -> dict[str, float]:
    """Of experts, the mean over the steps; nothing for a dense model."""
    if not window:
        return {}

    def mean(values: Iterable[Any]) -> float:
        return math.fsum(float(value) for value in values) / len(window)

    return {
        "expert_load_max": mean(m.load_max for m in window),
        "expert_load_min": mean(m.load_min for m in window),
        "load_balance_loss": mean(m.load_balance for m in window),
        "router_z_loss": mean(m.z for m in window),
        "dropped_fraction": mean(m.dropped for m in window),
    }


def _pipeline(run: Run, batch_size: int) -> dict[str, Any] | None:
    """How a step's rows go through the stages, and the share of time that a stage idles."""
    stages = run.model.execution.stages
    if stages is None:
        return None
    accumulation = run.config.train.accumulation
    count = check_microbatches(stages, batch_size, run.mesh, accumulation=accumulation)
    return {
        "stages": stages.count,
        "rounds": stages.rounds,
        "microbatches": count,
        "bubble": stages.bubble(count),
    }


def _device_memory(run: Run) -> int | None:
    """Peak bytes on the fullest local device, where the platform counts them (a CPU does not)."""
    stats = [d.memory_stats() or {} for d in run.mesh.local_devices]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    return max(peaks, default=None)


def _versions() -> dict[str, str]:
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"maxlm": __version__, "python": sys.version.split()[0], **found}


def _peak_tflops(device: jax.Device) -> float | None:
    """Dense bfloat16 peak of a device in TFLOP/s; None where there is none to speak of (a CPU)."""
    chip = chip_of(device.device_kind)
    return chip.peak / 1e12 if chip else None
