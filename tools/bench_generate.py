"""Tokens per second of generation: maxlm's engine against transformers' `generate`, in one run.

    python tools/bench_generate.py                         # GPT-2 124M, batch 1 and 16, 128 in, 128 out
    python tools/bench_generate.py --batch 4 --prompt 512 --new 64

Both hold the same random weights of GPT-2's shape in float32 and write the likeliest tokens; each in a
process of its own, one idle while the other works, round by round. A line per batch: the median
tokens/s of both with their spread, and the median of the rounds' ratios; the texts must be equal.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPES = {
    "gpt2-124m": {"n_layer": 12, "n_embd": 768, "n_head": 12},
    "tiny": {"n_layer": 2, "n_embd": 64, "n_head": 4},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", choices=SHAPES, default="gpt2-124m")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens to write")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=["maxlm", "transformers"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        serve(arguments.side, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_model(SHAPES[arguments.model], Path(folder))
        sides = {name: Side(name, folder) for name in ("transformers", "maxlm")}
        for batch in arguments.batch:
            work = {"batch": batch, "prompt": arguments.prompt, "new": arguments.new}
            compare(arguments.model, work, sides, arguments.rounds)
        for side in sides.values():
            side.close()


def compare(model: str, work: dict[str, int], sides: dict[str, Side], rounds: int) -> None:
    """Measure one batch and print its line."""
    first = {name: side.ask(work) for name, side in sides.items()}  # compiles, warms up
    texts = [one.pop("tokens") for one in first.values()]
    same = sum(a == b for a, b in zip(*texts, strict=True))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            seconds[name].append(side.ask(work)["seconds"])
    tokens = work["batch"] * work["new"]
    line: dict[str, Any] = {"model": model, **work}
    for name, times in seconds.items():
        rates = sorted(tokens / s for s in times)
        line[name] = {
            "tokens_per_second": round(statistics.median(rates), 1),
            "from": round(rates[0], 1),
            "to": round(rates[-1], 1),
        }
    pairs = zip(seconds["transformers"], seconds["maxlm"], strict=True)
    line["ratio"] = round(statistics.median(a / b for a, b in pairs), 2)
    line["equal_texts"] = f"{same} of {work['batch']}"
    print(json.dumps(line), flush=True)


class Side:
    """A process that generates when asked."""

    def __init__(self, name: str, folder: str):
        command = [sys.executable, __file__, "--side", name, "--folder", folder]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, work: dict[str, int]) -> dict[str, Any]:
        """Seconds that it took, and the tokens."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(work) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("one side ended: see its error above")
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def write_model(shape: dict[str, int], folder: Path) -> None:
    """Random GPT-2 weights large enough that texts do not settle on one token."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(**shape, initializer_range=0.05, bos_token_id=None, eos_token_id=None)
    GPT2LMHeadModel(config).save_pretrained(folder)


def serve(side: str, folder: str) -> None:
    """Answer each line of standard input."""
    generate = {"maxlm": of_maxlm, "transformers": of_transformers}[side](folder)
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        work = json.loads(line)
        prompts = [
            [(7 * i + 13 * row * row + row) % 50257 for i in range(work["prompt"])]
            for row in range(work["batch"])
        ]
        start = time.perf_counter()
        tokens = generate(prompts, work["new"])
        told = {"seconds": time.perf_counter() - start, "tokens": tokens}
        print(json.dumps(told), file=answers, flush=True)


def of_transformers(folder: str) -> Any:
    """Greedy generation by transformers."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def generate(prompts: list[list[int]], new: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
        )
        return written[:, ids.shape[1] :].tolist()

    return generate


def of_maxlm(folder: str) -> Any:
    """Greedy generation by the engine."""
    from maxlm.config.derive_model import longest_length
    from maxlm.generate.engine import Engine
    from maxlm.generate.request import Request
    from maxlm.generate.sampling import SamplingOptions
    from maxlm.model.inference import for_inference
    from maxlm.train.importing import read_huggingface

    config, model, params, _ = read_huggingface(folder)
    engine = Engine.of(*for_inference(model, params), context_length=longest_length(config.data))
    del params

    def generate(prompts: list[list[int]], new: int) -> list[list[int]]:
        for prompt in prompts:
            engine.submit(Request(prompt, new, SamplingOptions(temperature=0)))
        return [[token.id for token in tokens] for tokens in engine.run()]

    return generate


if __name__ == "__main__":
    main()
