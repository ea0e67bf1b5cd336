"""Every kind of mesh against one device: differences of loss and gradients, on 8 host devices.

    python tools/compare_layouts.py                              # print the table
    python tools/compare_layouts.py --write docs/parallelism.md  # put it between the page's marks
    python tools/compare_layouts.py --only context               # the layouts that name an axis

Each layout trains the same small model (see MODELS) on the same packed batches, whose documents
begin and end inside of shards, with padding at some rows' ends. In float64 the loss and the gradient
of every parameter after one step are compared with one device's; in float32 the losses of 20 steps.
Exits with 1 when a difference is over its bound.
"""

from __future__ import annotations

import os

# Before jax is imported: eight devices, and threads enough that they cannot wait for each other.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ.setdefault("NPROC", "32")

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from maxlm.batch import Batch
from maxlm.config.derive_model import resolve_model
from maxlm.config.load import load_config
from maxlm.config.mesh_axes import MESH_AXES
from maxlm.config.schema import RunConfig
from maxlm.model.definition import define
from maxlm.parallel.mesh import make_mesh
from maxlm.parallel.placement import local_rows, place_batch
from maxlm.train.canonical import to_canonical
from maxlm.train.execution import execution_of
from maxlm.train.optimizer import make_optimizer
from maxlm.train.state import fresh_state
from maxlm.train.step import make_train_step

BOUND_FLOAT64, BOUND_FLOAT32 = 1e-9, 1e-5
BATCH_SIZE, LENGTH, VOCABULARY, STEPS = 16, 64, 101, 20
BEGIN, END = "<!-- layouts: begin -->", "<!-- layouts: end -->"

SMALL = [
    "model.num_layers=8",
    "model.embed_dim=64",
    "model.num_heads=8",
    "model.num_kv_heads=4",
    "model.mlp_dim=128",
    "model.qk_norm=true",
    "optimizer.learning_rate=1e-3",
]
EXPERTS = [
    "model.num_layers=4",
    "model.num_experts=8",
    "model.expert_mlp_dim=32",
    "model.dense_layers=1",
    "model.shared_experts=1",
    "model.router_scoring=sigmoid",
    "model.router_bias_rate=0.001",
]
# Local and global layers, so that windows cross shards too.
MODELS = {
    "dense": [*SMALL, "model.attention_pattern=[local, global]", "model.attention_window=20"],
    "experts": [*SMALL, *EXPERTS, "model.load_balance_loss=0.05", "model.router_z_loss=0.001"],
    "experts in every layer": [*SMALL, *EXPERTS, "model.dense_layers=0"],
    # Of micro-batches: the losses of routing are taken over each, so they are left out.
    "experts, balanced by biases": [*SMALL, *EXPERTS, "model.load_balance_loss=0"],
}


@dataclass(frozen=True)
class Layout:
    """A mesh, and what else is asked of the run.

    Attributes:
        sizes: axes of the mesh that are not 1; their product is at most 8.
        model: which of MODELS.
        overrides: options of the run.
    """

    sizes: dict[str, int]
    model: str = "dense"
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The mesh in words."""
        return " × ".join(f"{axis} {size}" for axis, size in self.sizes.items()) or "one device"


ROUNDS = ("parallel.pipeline_rounds=2",)
ACCUMULATED = ("train.accumulation=2",)
RING = ("parallel.context_attention=ring",)
LAYOUTS = [
    Layout({"replica": 8}),
    Layout({"fsdp": 8}),
    Layout({"tensor": 4}),
    Layout({"replica": 2, "fsdp": 4}),
    Layout({"fsdp": 4, "tensor": 2}),
    Layout({"replica": 2, "tensor": 4}),
    Layout({"replica": 2, "fsdp": 2, "tensor": 2}),
    Layout({"replica": 2, "fsdp": 2, "tensor": 2}, overrides=ACCUMULATED),
    Layout({"context": 8}, overrides=RING),
    Layout({"fsdp": 2, "context": 4}, overrides=RING),
    Layout({"fsdp": 4, "context": 2}, overrides=(*RING, *ACCUMULATED)),
    Layout({"context": 4, "tensor": 2}, overrides=RING),
    Layout({"replica": 2, "context": 4}, overrides=("parallel.context_attention=ulysses",)),
    Layout({"replica": 2, "fsdp": 2, "context": 2}, overrides=RING),
    Layout(
        {"fsdp": 2, "context": 2, "tensor": 2}, overrides=("parallel.context_attention=all_gather",)
    ),
    Layout({"stage": 2}),
    Layout({"stage": 4}, overrides=("parallel.microbatches=4",)),
    Layout({"stage": 2, "fsdp": 4}, overrides=ROUNDS),
    Layout({"stage": 2, "fsdp": 2, "tensor": 2}, overrides=(*ROUNDS, *ACCUMULATED)),
    Layout({"replica": 2, "stage": 2, "tensor": 2}),
    Layout({"replica": 2, "stage": 4}, overrides=("parallel.rematerialization=full",)),
    Layout({"expert": 8}, "experts"),
    Layout({"fsdp": 2, "expert": 4}, "experts"),
    Layout({"expert": 4, "tensor": 2}, "experts"),
    Layout({"replica": 2, "expert": 4}, "experts"),
    Layout({"context": 2, "expert": 4}, "experts", RING),
    Layout({"fsdp": 2, "expert": 2, "tensor": 2}, "experts, balanced by biases", ACCUMULATED),
    Layout({"stage": 2, "expert": 4}, "experts in every layer"),
    Layout({"stage": 2, "context": 2, "tensor": 2}, overrides=(*ROUNDS, *RING)),
]


@dataclass
class Difference:
    """How far a layout is from one device, relative to the largest value."""

    layout: Layout
    loss: float
    gradient: float
    parameter: str  # whose gradient differs most
    losses32: float

    @property
    def good(self) -> bool:
        """Whether every difference is within its bound."""
        return max(self.loss, self.gradient) < BOUND_FLOAT64 and self.losses32 < BOUND_FLOAT32


def main() -> int:
    """Compare, print a table, and write it where it is asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=MESH_AXES, help="layouts that name this axis")
    parser.add_argument("--write", type=Path, help="page whose marked table is replaced")
    arguments = parser.parse_args()
    if arguments.only and arguments.write:
        parser.error("--write needs every layout: leave out --only")
    wanted = [lay for lay in LAYOUTS if not arguments.only or arguments.only in lay.sizes]
    found = []
    for layout in wanted:
        found.append(compare(layout))
        print(json.dumps(_record(found[-1])), flush=True)
    text = table(found)
    print("\n" + text)
    if arguments.write:
        page = arguments.write.read_text(encoding="utf-8")
        head, rest = page.split(BEGIN)
        tail = rest.split(END)[1]
        arguments.write.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}", encoding="utf-8")
    return 0 if all(difference.good for difference in found) else 1


def compare(layout: Layout) -> Difference:
    """Run a layout and one device on the same batches."""
    loss, gradients = one_step(layout)
    wanted_loss, wanted = _one_device_step(layout.model)
    assert gradients.keys() == wanted.keys()
    apart = {
        name: float(np.abs(gradients[name] - want).max() / max(np.abs(want).max(), 1e-300))
        for name, want in wanted.items()
    }
    worst = max(apart, key=lambda name: apart[name])
    losses, wanted_losses = many_steps(layout), _one_device_losses(layout.model)
    return Difference(
        layout,
        abs(loss / wanted_loss - 1),
        apart[worst],
        worst,
        float(np.abs(losses / wanted_losses - 1).max()),
    )


@cache
def _one_device_step(model: str) -> tuple[float, dict[str, np.ndarray]]:
    return one_step(Layout({}, model))


@cache
def _one_device_losses(model: str) -> np.ndarray:
    return many_steps(Layout({}, model))


def one_step(layout: Layout) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and mean gradients by canonical name, in float64: a step of plain descent with rate 1."""
    with jax.enable_x64(True):
        trainer = _Trainer(layout, "float64", optax.sgd(1.0))
        before = trainer.params()
        loss = trainer.step(next(packed_batches(1)))
        return loss, {name: old - trainer.params()[name] for name, old in before.items()}


def many_steps(layout: Layout) -> np.ndarray:
    """Losses of AdamW steps in float32."""
    trainer = _Trainer(layout, "float32", None)
    return np.array([trainer.step(batch) for batch in packed_batches(STEPS)])


class _Trainer:
    """A train step on a layout, made as a run makes it."""

    def __init__(
        self, layout: Layout, precision: str, optimizer: optax.GradientTransformation | None
    ):
        config = _config(layout, precision)
        devices = jax.devices()[: int(np.prod([1, *layout.sizes.values()]))]
        self.mesh = make_mesh(config.parallel, devices)
        self.model = define(config.model, execution_of(config, self.mesh))
        optimizer = optimizer or make_optimizer(config.optimizer, self.model.parameters)
        step = make_train_step(
            self.model,
            optimizer,
            lambda step: jax.numpy.ones((), "float32"),
            clip_norm=None,
            accumulation=config.train.accumulation,
            token_bytes=np.ones(VOCABULARY, np.int32),
        )
        self._step = jax.jit(step, donate_argnums=0)
        with jax.set_mesh(self.mesh):
            self.state = fresh_state(self.model, optimizer, seed=0, average=False, mesh=self.mesh)

    def params(self) -> dict[str, np.ndarray]:
        """Parameters by canonical name."""
        with jax.set_mesh(self.mesh):
            arrays = to_canonical(self.state, self.model)
        return {n: np.asarray(a) for n, a in arrays.items() if n.startswith("params.")}

    def step(self, batch: Batch) -> float:
        """Take a step; returns its loss."""
        with jax.set_mesh(self.mesh):
            placed = place_batch(batch, BATCH_SIZE, local_rows(BATCH_SIZE, self.mesh), self.mesh)
            self.state, metrics = self._step(self.state, placed)
            return float(metrics.nll) / float(metrics.weight)


def _config(layout: Layout, precision: str) -> RunConfig:
    axes = [f"parallel.{axis}={layout.sizes.get(axis, 1)}" for axis in MESH_AXES]
    run = [f"train.precision={precision}", f"data.length={LENGTH}"]
    config = load_config([], [*MODELS[layout.model], *axes, *run, *layout.overrides])
    model = resolve_model(config.model, vocab_size=VOCABULARY, length=LENGTH)
    return config.model_copy(update={"model": model})


def packed_batches(count: int) -> Iterator[Batch]:
    """Random tokens in two documents a row that begin and end anywhere, some rows padded."""
    rng = np.random.default_rng(0)
    index = np.arange(LENGTH)[None]
    for _ in range(count):
        tokens = rng.integers(0, VOCABULARY, (BATCH_SIZE, LENGTH + 1), dtype=np.int32)
        cuts = np.sort(rng.integers(1, LENGTH + 8, (BATCH_SIZE, 2)), axis=1)
        second, padding = index >= cuts[:, :1], index >= cuts[:, 1:]
        segments = np.where(padding, 0, 1 + second.astype(np.int32)).astype(np.int32)
        starts = np.where(second, cuts[:, :1], 0)
        weights = (segments > 0) & (index != cuts[:, :1] - 1) & (index != cuts[:, 1:] - 1)
        positions = np.where(padding, 0, index - starts).astype(np.int32)
        yield Batch(tokens[:, :-1], tokens[:, 1:], weights.astype(np.float32), segments, positions)


def table(found: list[Difference]) -> str:
    """The differences in Markdown."""
    lines = [
        "| mesh | model | options | loss, float64 | gradients, float64 | 20 losses, float32 |",
        "|---|---|---|---|---|---|",
    ]
    for d in found:
        options = ", ".join(f"`{option}`" for option in d.layout.overrides)
        mark = "" if d.good else " **over its bound**"
        lines.append(
            f"| {d.layout.name} | {d.layout.model} | {options} | {d.loss:.1e} | {d.gradient:.1e} "
            f"| {d.losses32:.1e}{mark} |"
        )
    return "\n".join(lines)


def _record(d: Difference) -> dict[str, Any]:
    return {
        "layout": d.layout.name,
        "model": d.layout.model,
        "options": d.layout.overrides,
        "loss_float64": d.loss,
        "gradient_float64": d.gradient,
        "worst_parameter": d.parameter,
        "losses_float32": d.losses32,
        "good": d.good,
    }


if __name__ == "__main__":
    sys.exit(main())
