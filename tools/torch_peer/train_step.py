"""The PyTorch side of `tools/bench_train.py`: a plain train step of the same arithmetic.

Float32 masters, matmuls and residual stream in the case's precision, norms, softmax and loss in
float32, gradients clipped by their global norm, fused AdamW with decay on matrices and tables only.
Attention is scaled_dot_product_attention where a row is one document, and FlexAttention with the
documents' block mask where rows are packed (on a CPU: a mask). Nothing of maxlm is imported: config and
batches come from the files that its side wrote. In: a request; out: one line of JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decoder import Decoder, attention_of

LOSS_CHUNK = 8192


def main(request: dict[str, Any]) -> None:
    """Measure and print."""
    started = time.perf_counter()
    config = json.loads(Path(request["exchange"] + ".json").read_text())
    arrays = np.load(request["exchange"] + ".npz")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    names = ("tokens", "targets", "loss_weights", "segment_ids", "positions")
    batches = [
        {name: torch.from_numpy(arrays[name][i]).to(device) for name in names}
        for i in range(len(arrays["tokens"]))
    ]
    precision = getattr(torch, config["train"]["precision"])
    decoder = Decoder(config["model"], precision).to(device)
    if request.get("weights"):
        decoder.load(np.load(request["weights"]))
    compiled = request["torch_compile"] == "on"
    record = None
    for chunk in (None, LOSS_CHUNK):
        try:
            step = Step(decoder, config, request["rows"] == "packed", compiled, chunk)
            record = measure(step, batches, request, started)
            break
        except torch.OutOfMemoryError:  # whole logits do not fit: their chunks may
            decoder.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
    if record is None:
        raise SystemExit("out of memory, with the loss in chunks too")
    print(json.dumps(record | environment(device)), flush=True)


class Step:
    """One train step; call it with a batch."""

    def __init__(
        self, decoder: Decoder, config: dict[str, Any], packed: bool, compiled: bool, chunk: Any
    ):
        self.decoder, self.packed, self.compiled, self.chunk = decoder, packed, compiled, chunk
        optimizer = config["optimizer"]
        self.clip = optimizer["clip_norm"]
        matrices = [p for p in decoder.parameters() if p.dim() >= 2]
        vectors = [p for p in decoder.parameters() if p.dim() < 2]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": optimizer["weight_decay"]},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=optimizer["learning_rate"],
            betas=(optimizer["beta1"], optimizer["beta2"]),
            eps=optimizer["epsilon"],
            fused=True,
        )
        self.loss = torch.compile(decoder.loss) if compiled else decoder.loss

    def __call__(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean loss in nats a counted token, before the update."""
        attend = attention_of(batch["segment_ids"], self.packed, self.compiled)
        loss = self.loss(batch, attend, self.chunk)
        loss.backward()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def measure(
    step: Step, batches: list[dict[str, torch.Tensor]], request: dict[str, Any], started: float
) -> dict[str, Any]:
    """Warm up, then time rounds of steps as the other side does."""
    taken = 0

    def run(count: int) -> float:
        nonlocal taken
        for _ in range(count):
            loss = step(batches[taken % len(batches)])
            taken += 1
        return float(loss)  # waits for the device

    first_loss = run(1)
    first = time.perf_counter() - started
    last_loss = run(3)

    def timed(count: int) -> float:
        start = time.perf_counter()
        run(count)
        return (time.perf_counter() - start) / count

    estimate = min(timed(1) for _ in range(2))
    steps = int(min(max(request["seconds"] / request["rounds"] / estimate, 1), 200))
    rounds = [timed(steps) for _ in range(request["rounds"])]
    seconds = statistics.median(rounds)
    on_gpu = torch.cuda.is_available()
    return {
        "tokens_per_second": round(batches[0]["tokens"].numel() / seconds, 1),
        "step_seconds": seconds,
        "step_seconds_min_max": [min(rounds), max(rounds)],
        "steps_measured": steps * len(rounds),
        "first_step_seconds": round(first, 2),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "loss": [first_loss, last_loss],
        "loss_chunk": step.chunk,
        "torch_compile": step.compiled,
        "attention": "flex_attention" if step.packed and on_gpu else "scaled_dot_product_attention",
    }


def environment(device: torch.device) -> dict[str, Any]:
    """Where this ran."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return {"device": name, "versions": {"torch": torch.__version__, "cuda": torch.version.cuda}}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
