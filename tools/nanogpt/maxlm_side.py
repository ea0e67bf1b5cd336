"""maxlm's side of `tools/compare_nanogpt.py`: a process of its own for each thing measured.

In: a command and a JSON object of settings; out: JSON lines. (Training itself is `maxlm train`.)

    evaluate   loss of a run's newest checkpoint on nanoGPT's own validation split
    speed      nanoGPT's weights in our model: equal logits and losses, then steps when told to
"""

from __future__ import annotations

import collections
import json
import os
import pickle
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from maxlm.batch import Batch

# As `maxlm.train.loop` has it: more un-awaited steps never help the device.
MAX_IN_FLIGHT = 16


def evaluate(settings: dict[str, Any]) -> None:
    """Print the mean loss over every target of nanoGPT's validation split, in its windows.

    The text is ASCII, so its characters are our bytes, and each target and each context is the
    same as in nanoGPT's own evaluation; only our softmax has 257 entries instead of 65.

    Args:
        settings: `run` (folder), `data` (nanoGPT's prepared folder), `length` of the windows.
    """
    from maxlm.data.rows import InMemoryTokens
    from maxlm.data.windows import eval_batches
    from maxlm.evaluate.perplexity import evaluate as evaluate_batches
    from maxlm.evaluate.perplexity import make_eval_step
    from maxlm.parallel.placement import local_rows, place_batch
    from maxlm.train.loading import load

    with open(os.path.join(settings["data"], "meta.pkl"), "rb") as file:
        characters = pickle.load(file)["itos"]
    ids = np.fromfile(os.path.join(settings["data"], "val.bin"), np.uint16)
    text = "".join(characters[int(i)] for i in ids)
    trained = load(settings["run"])
    tokens = np.array(trained.tokenizer.encode(text), np.int32)
    assert len(tokens) == len(ids), "a character is not one token: the losses would not compare"
    rows = local_rows(64, trained.mesh)
    host = eval_batches(InMemoryTokens([tokens]), settings["length"], 64, None, rows)
    batches = (place_batch(batch, 64, rows, trained.mesh) for batch in host)
    result = evaluate_batches(
        make_eval_step(trained.model, trained.token_bytes), trained.params, batches
    )
    found = {"loss": result["loss"], "targets": result["tokens"], "step": trained.step}
    print(json.dumps(found), flush=True)


def speed(settings: dict[str, Any]) -> None:
    """Compare with what torch left beside `exchange`, then step as asked on stdin.

    Args:
        settings: `exchange`, `config` and `overrides` (model and parallel sections are used),
            `data` (nanoGPT's prepared folder), `batch_size`, `keep_freed_memory`.
    """
    if settings["keep_freed_memory"]:
        from maxlm.parallel.host_memory import keep_freed_memory

        keep_freed_memory()
    exchange = np.load(settings["exchange"])
    theirs = np.load(settings["exchange"].replace(".npz", "-torch.npz"))
    trainer = _Trainer(settings, theirs, length=exchange["x"].shape[2])
    print("EQUAL" + json.dumps(trainer.compared(exchange, theirs)), flush=True)
    data = np.memmap(os.path.join(settings["data"], "train.bin"), np.uint16, mode="r")
    generator = np.random.default_rng(1337)
    answer(lambda steps: trainer.run(steps, data, generator))


class _Trainer:
    """nanoGPT's weights in our model, and its train step."""

    def __init__(self, settings: dict[str, Any], theirs: Any, length: int):
        import jax
        import jax.numpy as jnp

        from maxlm.config.derive_model import resolve_model
        from maxlm.config.load import load_config
        from maxlm.config.schema import OptimizerConfig
        from maxlm.model.decoder import Execution
        from maxlm.model.definition import define
        from maxlm.parallel.mesh import make_mesh

        sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        from plain_step import plain_step

        config = load_config(settings["config"], settings["overrides"])
        parallel = config.parallel
        if parallel.cpu_devices:
            jax.config.update("jax_num_cpu_devices", parallel.cpu_devices)
        vocab_size = theirs["transformer.wte.weight"].shape[0]
        shape = resolve_model(config.model, vocab_size=vocab_size, length=length)
        unroll = parallel.scan_unroll or shape.num_layers
        self.length, self.batch_size = length, settings["batch_size"]
        self.model = define(
            shape, Execution(scan_unroll=unroll, loss_chunk=config.train.loss_chunk)
        )
        self.mesh = make_mesh(parallel)
        with jax.set_mesh(self.mesh):
            weights = weights_of(theirs, self.model.parameters)
            self.state, self.step = plain_step(
                self.model,
                OptimizerConfig(learning_rate=1e-3, beta2=0.99, weight_decay=0.1),
                lambda step: jnp.ones((), jnp.float32),
                self.mesh,
                params=jax.device_put(weights, self.model.shardings(self.mesh)),
                compiler_options=parallel.compiler_options,
            )

    def compared(self, exchange: Any, theirs: Any) -> dict[str, Any]:
        """Our logits, then our losses of a step a batch, against those of PyTorch."""
        import jax

        with jax.set_mesh(self.mesh):
            pairs = [self._place(x, y) for x, y in zip(exchange["x"], exchange["y"], strict=True)]
            program = jax.jit(lambda p, b: self.model.bind(p).logits(b))
            logits = np.asarray(program(self.state.params, pairs[0]))
            losses = []
            for pair in pairs:
                self.state, metrics = self.step(self.state, pair)
                losses.append(float(metrics.nll) / float(metrics.weight))
        return {
            "logits_max_difference": float(np.abs(logits - theirs["logits"]).max()),
            "logits_max": float(np.abs(theirs["logits"]).max()),
            "losses_max_difference": float(np.abs(np.array(losses) - theirs["losses"]).max()),
            "losses": losses,
            "steps_compared": len(losses),
            "mesh": {axis: size for axis, size in self.mesh.shape.items() if size > 1},
            "jax": jax.__version__,
        }

    def run(self, steps: int, data: np.ndarray, generator: np.random.Generator) -> None:
        """Take steps on random windows of the data, and await the last."""
        import jax

        in_flight: collections.deque = collections.deque()
        with jax.set_mesh(self.mesh):
            for _ in range(steps):
                starts = generator.integers(0, len(data) - self.length, self.batch_size)
                both = data[starts[:, None] + np.arange(self.length + 1)].astype(np.int32)
                placed = self._place(both[:, :-1], both[:, 1:])
                self.state, metrics = self.step(self.state, placed)
                in_flight.append(metrics.nll)
                if len(in_flight) > MAX_IN_FLIGHT:
                    in_flight.popleft().block_until_ready()
            jax.block_until_ready(self.state)

    def _place(self, x: np.ndarray, y: np.ndarray) -> Batch:
        from maxlm.parallel.placement import local_rows, place_batch

        rows = local_rows(self.batch_size, self.mesh)
        return place_batch(_batch(x, y), self.batch_size, rows, self.mesh)


def weights_of(theirs: Any, parameters: dict[str, Any]) -> dict[str, np.ndarray]:
    """nanoGPT's weights (PyTorch's `[out, in]`, one array a layer) by our names and shapes."""
    names = {
        "attention_norm.scale": "ln_1.weight",
        "attention.output.kernel": "attn.c_proj.weight",
        "mlp_norm.scale": "ln_2.weight",
        "mlp.up.kernel": "mlp.c_fc.weight",
        "mlp.down.kernel": "mlp.c_proj.weight",
    }
    joint = ["attention.query.kernel", "attention.key.kernel", "attention.value.kernel"]
    tables = {
        "embedding": "transformer.wte.weight",
        "positions": "transformer.wpe.weight",
        "final_norm.scale": "transformer.ln_f.weight",
    }
    result = {}
    for name, info in parameters.items():
        short = name.removeprefix("segments.0.blocks.0.")
        if name in tables:
            array = theirs[tables[name]]
            padding = info.shape[0] - array.shape[0]  # of the vocabulary
            array = np.pad(array, ((0, padding), *[(0, 0)] * (array.ndim - 1)))
        else:
            layers = []
            for layer in range(info.shape[0]):
                prefix = f"transformer.h.{layer}."
                if short in joint:
                    parts = np.split(theirs[f"{prefix}attn.c_attn.weight"], 3)
                    layers.append(parts[joint.index(short)].T)
                else:
                    layers.append(theirs[prefix + names[short]].T)
            array = np.stack(layers)
        result[name] = np.ascontiguousarray(array.reshape(info.shape))
    return result


def _batch(x: np.ndarray, y: np.ndarray) -> Batch:
    from maxlm.batch import Batch

    ones = np.ones(x.shape, np.int32)
    positions = np.broadcast_to(np.arange(x.shape[1], dtype=np.int32), x.shape)
    inputs, targets = x.astype(np.int32), y.astype(np.int32)
    return Batch(inputs, targets, ones.astype(np.float32), ones, positions)


def answer(run: Callable[[int], None]) -> None:
    """Run as many steps as each line of stdin says; print wall and CPU seconds."""
    run(5)
    print("READY", flush=True)
    for line in sys.stdin:
        run(1)
        wall, cpu = time.perf_counter(), time.process_time()
        run(int(line))
        result = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        print("DONE" + json.dumps(result), flush=True)


if __name__ == "__main__":
    {"evaluate": evaluate, "speed": speed}[sys.argv[1]](json.loads(sys.argv[2]))
