"""nanoGPT's side of `tools/compare_nanogpt.py`: runs under PyTorch's Python, inside a checkout.

nanoGPT's files are run as they are. In: a command and a JSON object of settings; out: JSON lines.

    train      its train.py, with the seed moved, evaluations timed and each checkpoint copied
    evaluate   loss of checkpoints on the whole validation split
    speed      its model and optimizer, stepping when told to
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, os.getcwd())
import model as nanogpt  # of the checkout, which is the working folder

DATA = "data/shakespeare_char"


def train(settings: dict[str, Any]) -> None:
    """Run train.py; `timeline.jsonl` beside its checkpoints says when each was written.

    Args:
        settings: `seed` (0 leaves train.py's own), `out_dir`, `arguments` of train.py.
    """
    folder = settings["out_dir"]
    os.makedirs(folder, exist_ok=True)
    timeline: list[dict[str, Any]] = []
    excluded = _time_evaluations()
    seed_all, save = torch.manual_seed, torch.save
    torch.manual_seed = lambda seed: seed_all(seed + settings["seed"])

    def save_and_copy(checkpoint: Any, path: str) -> None:
        save(checkpoint, path)
        start = time.time()
        copy = os.path.join(folder, f"{checkpoint['iter_num']}.pt")
        shutil.copy(path, copy)
        excluded[0] += time.time() - start
        record = {"step": checkpoint["iter_num"], "path": copy}
        record |= {"time": time.time(), "excluded_seconds": excluded[0]}
        timeline.append(record)

    torch.save = save_and_copy
    sys.argv = ["train.py", *settings["arguments"]]
    runpy.run_path("train.py", run_name="__main__")
    timeline.append({"step": None, "time": time.time(), "excluded_seconds": excluded[0]})
    with open(os.path.join(folder, "timeline.jsonl"), "w") as file:
        file.writelines(json.dumps(record) + "\n" for record in timeline)


def _time_evaluations() -> list[float]:
    """Sum up what lies between `model.eval()` and `model.train()`: train.py's estimate_loss."""
    excluded, started = [0.0], [0.0]

    def eval_(self: nn.Module) -> nn.Module:
        started[0] = time.time()
        return nn.Module.eval(self)

    def train_(self: nn.Module, mode: bool = True) -> nn.Module:
        if mode and started[0]:
            excluded[0] += time.time() - started[0]
            started[0] = 0.0
        return nn.Module.train(self, mode)

    nanogpt.GPT.eval, nanogpt.GPT.train = eval_, train_
    return excluded


def evaluate(settings: dict[str, Any]) -> None:
    """Print a line per checkpoint: mean loss over every target of the validation split.

    Args:
        settings: `checkpoints` (paths) and `length` of the windows, which do not overlap.
    """
    tokens = np.fromfile(f"{DATA}/val.bin", np.uint16).astype(np.int64)
    length = settings["length"]
    rows = -(-(len(tokens) - 1) // length)
    inputs = np.zeros(rows * length, np.int64)
    targets = np.full(rows * length, -1, np.int64)  # its loss ignores -1
    inputs[: len(tokens) - 1], targets[: len(tokens) - 1] = tokens[:-1], tokens[1:]
    x, y = (torch.from_numpy(a.reshape(rows, length)) for a in (inputs, targets))
    for path in settings["checkpoints"]:
        gpt = _load(path).eval()
        total = 0.0
        with torch.no_grad():
            for start in range(0, rows, 64):
                batch = slice(start, start + 64)
                logits, _ = gpt(x[batch], y[batch])
                flat = logits.double().flatten(0, 1)
                sums = functional.cross_entropy(
                    flat, y[batch].flatten(), ignore_index=-1, reduction="sum"
                )
                total += sums.item()
        count = len(tokens) - 1
        print(json.dumps({"path": path, "loss": total / count, "targets": count}), flush=True)


def speed(settings: dict[str, Any]) -> None:
    """Save weights, logits and a few losses for comparison; then steps as asked on stdin.

    Args:
        settings: `exchange` (npz with the batches to compare on; the results go beside it),
            `checkpoint` (None: fresh weights), `batch_size`, `threads` (None: torch's own).
    """
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    torch.manual_seed(1337)
    gpt = _load(settings["checkpoint"])
    optimizer = gpt.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")

    def update(x: torch.Tensor, y: torch.Tensor, then: Callable | None = None) -> Any:
        _, loss = gpt(x, y)
        following = then() if then else None  # where train.py reads the next batch
        loss.backward()
        torch.nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item(), following

    batches = np.load(settings["exchange"])
    pairs = [[torch.from_numpy(a) for a in pair] for pair in zip(batches["x"], batches["y"])]  # noqa: B905
    weights = {name: p.detach().numpy().copy() for name, p in gpt.named_parameters()}
    with torch.no_grad():
        logits = gpt(*pairs[0])[0].numpy()
    losses = [update(x, y)[0] for x, y in pairs]
    theirs = settings["exchange"].replace(".npz", "-torch.npz")
    np.savez(theirs, logits=logits, losses=losses, **weights)

    block, batch_size = gpt.config.block_size, settings["batch_size"]

    def random_batch() -> tuple[torch.Tensor, torch.Tensor]:
        data = np.memmap(f"{DATA}/train.bin", np.uint16, mode="r")
        starts = torch.randint(len(data) - block, (batch_size,))
        x = torch.stack([torch.from_numpy(data[i : i + block].astype(np.int64)) for i in starts])
        y = torch.stack(
            [torch.from_numpy(data[i + 1 : i + 1 + block].astype(np.int64)) for i in starts]
        )
        return x, y

    batch = random_batch()

    def run(steps: int) -> None:
        nonlocal batch
        for _ in range(steps):
            _, batch = update(*batch, then=random_batch)

    answer(run)


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


def _load(path: str | None) -> nn.Module:
    if path is None:
        return nanogpt.GPT(
            nanogpt.GPTConfig(
                block_size=64,
                vocab_size=65,
                n_layer=4,
                n_head=4,
                n_embd=128,
                dropout=0.0,
                bias=False,
            )
        )
    checkpoint = torch.load(path, map_location="cpu")
    gpt = nanogpt.GPT(nanogpt.GPTConfig(**checkpoint["model_args"]))
    gpt.load_state_dict(checkpoint["model"])
    return gpt


if __name__ == "__main__":
    {"train": train, "evaluate": evaluate, "speed": speed}[sys.argv[1]](json.loads(sys.argv[2]))
