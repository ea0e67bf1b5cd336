"""maxlm against karpathy/nanoGPT on the CPU: how fast it learns, and how fast it steps.

    git clone https://github.com/karpathy/nanoGPT && git -C nanoGPT checkout 3adf61e
    pip install torch==2.13.0 requests   # torch comes with maxlm[test] on Python 3.11
    (cd nanoGPT && python data/shakespeare_char/prepare.py)
    python tools/compare_nanogpt.py --nanogpt nanoGPT

`--learning`: its README's CPU run and a run of ours on the same text and split, interleaved over
seeds. Both final models are judged on the whole validation split in windows of 64 that do not
overlap. Time is from process start to exit, compilation included, evaluations excluded.

`--speed`: its weights in our model, the logits and a few AdamW steps compared, then interleaved
rounds of train steps on random batches in one process each.

Neither flag means both. JSON lines go to stdout as they are found, then a table in Markdown. Other
programs on the machine disturb PyTorch more than maxlm: the load before each part is reported.
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

import numpy as np

SIDES = Path(__file__).resolve().parent / "nanogpt"
COMMIT = "3adf61e"
LENGTH, BATCH_SIZE = 64, 12
# The README's command for a CPU; checkpoints at every evaluation, so that the last one is judged.
README = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 "
    "--log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 "
    "--dropout=0.0 --always_save_checkpoint=True"
)


def main() -> None:
    """Measure what is asked."""
    arguments = _parse()
    _check_checkout(arguments)
    tables = []
    with tempfile.TemporaryDirectory(prefix="compare-nanogpt-") as scratch:
        folder = Path(arguments.keep or scratch).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if arguments.learning:
            tables.append(learning(arguments, folder))
        if arguments.speed:
            tables.append(speed(arguments, folder))
    tables.append(f"nanoGPT {COMMIT}.")
    print("\n" + "\n\n".join(tables))


def _parse() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--nanogpt", type=Path, required=True, help=f"checkout of {COMMIT}")
    parser.add_argument(
        "--torch-python", type=Path, default=sys.executable, help="that has PyTorch; unset: this"
    )
    parser.add_argument("--learning", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--config", default="runs/shakespeare-race", help="what maxlm trains")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="options of it")
    parser.add_argument("--nanogpt-iterations", type=int, default=2000, help="its README's: 2000")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="train steps of a round")
    parser.add_argument(
        "--speed-config", default="runs/shakespeare-nano", help="nanoGPT's shape in maxlm"
    )
    parser.add_argument("--speed-set", nargs="*", default=[], metavar="key=value")
    parser.add_argument("--checkpoint", type=Path, help="weights for --speed: a ckpt.pt of nanoGPT")
    parser.add_argument("--threads", type=int, help="of PyTorch; unset: as many as it chooses")
    parser.add_argument("--mallopt", choices=["on", "off"], default="on", help="as maxlm train: on")
    parser.add_argument("--keep", type=Path, help="folder for runs and checkpoints; unset: none")
    arguments = parser.parse_args()
    if not (arguments.learning or arguments.speed):
        arguments.learning = arguments.speed = True
    # Not resolved: a virtual environment's Python is a link that must keep its name.
    arguments.torch_python = Path(os.path.abspath(arguments.torch_python))
    arguments.nanogpt = arguments.nanogpt.resolve()
    for name in ("config", "speed_config"):  # a file, unless it is the name of a preset
        if Path(getattr(arguments, name)).is_file():
            setattr(arguments, name, str(Path(getattr(arguments, name)).resolve()))
    return arguments


def _check_checkout(arguments: argparse.Namespace) -> None:
    data = arguments.nanogpt / "data/shakespeare_char"
    for path in (arguments.nanogpt / "train.py", data / "val.bin", arguments.torch_python):
        if not path.exists():
            sys.exit(f"{path} is missing; see the top of {__file__} for how to get it")
    probe = [str(arguments.torch_python), "-c", "import torch"]
    if subprocess.run(probe, capture_output=True).returncode:
        sys.exit(
            f"{arguments.torch_python} has no torch: name a Python that has with --torch-python"
        )
    git = ["git", "-C", str(arguments.nanogpt)]
    found = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    dirty = subprocess.run(
        [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True
    ).stdout
    if not found.startswith(COMMIT) or dirty.strip():
        sys.exit(f"{arguments.nanogpt} is not an unmodified checkout of {COMMIT}: {found}{dirty}")


# Learning.


def learning(arguments: argparse.Namespace, folder: Path) -> str:
    """Race over seeds; returns the table."""
    store = folder / "store"
    run = ["data", "tokenize", "--source", "sample:tinyshakespeare", "--tokenizer", "byte"]
    run += ["--splits", "validation=0.1", "--split-by", "position", "--output", str(store)]
    _maxlm(run, folder)
    pairs = []
    for seed in range(arguments.seeds):
        sides = [_train_nanogpt, _train_maxlm]
        # Who goes first alternates, so that a warming machine favours nobody.
        found = {}
        for train in sides if seed % 2 == 0 else reversed(sides):
            result = train(arguments, folder, seed)
            found[result["side"]] = result
            print(json.dumps({"kind": "learning", **result}), flush=True)
        pairs.append((found["nanogpt"], found["maxlm"]))
    return _learning_table(pairs)


def _train_nanogpt(arguments: argparse.Namespace, folder: Path, seed: int) -> dict[str, Any]:
    out = folder / f"nanogpt-{seed}"
    steps = arguments.nanogpt_iterations
    options = [*README.split(), f"--max_iters={steps}", f"--lr_decay_iters={steps}"]
    if steps < 250:
        options.append(f"--eval_interval={steps}")
    options.append(f"--out_dir={out}")
    settings = {"seed": seed, "out_dir": str(out), "arguments": options}
    load, start = os.getloadavg()[0], time.time()
    log = _torch(arguments, "train", settings).stdout
    wall = time.time() - start
    (folder / f"nanogpt-{seed}.txt").write_text(log)
    *saved, end = [json.loads(line) for line in (out / "timeline.jsonl").read_text().splitlines()]
    judge = {"checkpoints": [record["path"] for record in saved], "length": LENGTH}
    judged = _torch(arguments, "evaluate", judge).stdout.splitlines()
    losses = [json.loads(line) for line in judged if line.startswith("{")]
    curve = [
        [round(r["time"] - start - r["excluded_seconds"], 2), round(loss["loss"], 4), r["step"]]
        for r, loss in zip(saved, losses, strict=True)
    ]
    return {
        "side": "nanogpt",
        "seed": seed,
        "loss": losses[-1]["loss"],
        "targets": losses[-1]["targets"],
        "train_seconds": wall - end["excluded_seconds"],
        "excluded_seconds": end["excluded_seconds"],
        "wall_seconds": wall,
        "load_before": load,
        "curve": curve,
        "command": "train.py " + " ".join(options),
    }


def _train_maxlm(arguments: argparse.Namespace, folder: Path, seed: int) -> dict[str, Any]:
    name, store = f"maxlm-{seed}", folder / "store"
    command = ["train", arguments.config, f"name={name}", f"output={folder}"]
    command += [f"data.mixture.shakespeare.store={store}", f"eval.sets.validation.store={store}"]
    command += [f"eval.sets.validation.length={LENGTH}", f"train.seed={seed}", f"data.seed={seed}"]
    # Every compilation is paid for here; a sample for the eye is no part of training.
    command += ["logging.compile_cache=null", "eval.prompts=[]", *arguments.set]
    load, start = os.getloadavg()[0], time.time()
    log = _maxlm([*command, "--plain"], folder)
    wall = time.time() - start
    (folder / f"{name}.txt").write_text(log)
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    excluded, curve = 0.0, []
    for record in records:
        if record["kind"] == "eval":
            excluded += record["seconds"]
            at = record["time"] - start - excluded
            curve.append([round(at, 2), round(record["loss"], 4), record["step"]])
    settings = {
        "run": str(folder / name),
        "data": str(arguments.nanogpt / "data/shakespeare_char"),
        "length": LENGTH,
    }
    judge = [sys.executable, str(SIDES / "maxlm_side.py"), "evaluate", json.dumps(settings)]
    judged = json.loads(_checked(judge, folder).stdout)
    return {
        "side": "maxlm",
        "seed": seed,
        "loss": judged["loss"],
        "targets": judged["targets"],
        "loss_of_maxlm_eval": curve[-1][1],
        "train_seconds": wall - excluded,
        "excluded_seconds": excluded,
        "wall_seconds": wall,
        "load_before": load,
        "curve": curve,
        "steps": judged["step"],
        "command": "maxlm " + " ".join(command),
    }


def _learning_table(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    lines = [
        "### Learning: loss in nats per character on the whole validation split, windows of 64",
        "",
        "| seed | nanoGPT loss | nanoGPT s | maxlm loss | maxlm s | maxlm's time / nanoGPT's "
        "| maxlm first at or below nanoGPT's final loss |",
        "|---|---|---|---|---|---|---|",
    ]
    ratios, lower = [], 0
    for theirs, ours in pairs:
        ratio = ours["train_seconds"] / theirs["train_seconds"]
        ratios.append(ratio)
        lower += ours["loss"] <= theirs["loss"]
        reached = [f"{s} s (step {step})" for s, loss, step in ours["curve"]
                   if loss <= theirs["loss"]]  # fmt: skip
        cells = [
            f"{theirs['seed']}",
            f"{theirs['loss']:.4f}",
            f"{theirs['train_seconds']:.1f}",
            f"{ours['loss']:.4f}",
            f"{ours['train_seconds']:.1f}",
            f"{ratio:.2f}",
            reached[0] if reached else "never",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"maxlm ends at or below nanoGPT's loss in {lower} of {len(pairs)} seeds, in "
        f"{statistics.median(ratios):.2f}× its time (median; worst {max(ratios):.2f}×).",
    ]
    theirs, ours = pairs[0]
    lines += ["", "Curves of seed 0, seconds of training → loss:", ""]
    for side in (theirs, ours):
        points = ", ".join(f"{s:.1f} → {loss:.3f}" for s, loss, _ in side["curve"])
        lines.append(f"- {side['side']}: {points}")
    return "\n".join(lines)


# Speed.


def speed(arguments: argparse.Namespace, folder: Path) -> str:
    """Compare the models, then race their steps; returns the table."""
    exchange = folder / "exchange.npz"
    data = arguments.nanogpt / "data/shakespeare_char"
    text = np.fromfile(data / "train.bin", np.uint16).astype(np.int64)
    starts = np.random.default_rng(0).integers(0, len(text) - LENGTH - 1, (5, BATCH_SIZE, 1))
    both = text[starts + np.arange(LENGTH + 1)]
    np.savez(exchange, x=both[..., :-1], y=both[..., 1:])
    checkpoint = str(arguments.checkpoint.resolve()) if arguments.checkpoint else None
    torch_settings = {
        "exchange": str(exchange),
        "checkpoint": checkpoint,
        "batch_size": BATCH_SIZE,
        "threads": arguments.threads,
    }
    maxlm_settings = {
        "exchange": str(exchange),
        "config": arguments.speed_config,
        "overrides": arguments.speed_set,
        "data": str(data),
        "batch_size": BATCH_SIZE,
        "keep_freed_memory": arguments.mallopt == "on",
    }
    torch_command = [str(arguments.torch_python), str(SIDES / "torch_side.py"), "speed"]
    maxlm_command = [sys.executable, str(SIDES / "maxlm_side.py"), "speed"]
    theirs = _Racer([*torch_command, json.dumps(torch_settings)], arguments.nanogpt)
    ours = _Racer([*maxlm_command, json.dumps(maxlm_settings)], folder)
    equal = json.loads(ours.heard["EQUAL"])
    print(json.dumps({"kind": "speed", "side": "both", **equal}), flush=True)
    racers = {"nanogpt": theirs, "maxlm": ours}
    for number in range(arguments.rounds):
        # PyTorch's threads spin for a while after their work; the pause lets them sleep.
        for name in sorted(racers, reverse=number % 2 == 0):
            time.sleep(1)
            load = os.getloadavg()[0]
            found = racers[name].race(arguments.steps)
            tokens = arguments.steps * BATCH_SIZE * LENGTH / found["seconds"]
            record = {"kind": "speed", "side": name, "round": number, "load_before": load}
            record |= {"tokens_per_second": tokens, **found}
            print(json.dumps(record), flush=True)
    for racer in racers.values():
        racer.close()
    return _speed_table(racers, equal, arguments)


class _Racer:
    """A process that waits for a number of steps on stdin and answers with its times."""

    def __init__(self, command: list[str], folder: Path):
        self._process = subprocess.Popen(
            command, cwd=folder, env=_environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.rounds: list[dict[str, float]] = []
        self.heard: dict[str, str] = {}
        self._wait("READY")

    def race(self, steps: int) -> dict[str, float]:
        """Run `steps` steps; wall and CPU seconds."""
        assert self._process.stdin
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        found = json.loads(self._wait("DONE"))
        self.rounds.append({name: value / steps for name, value in found.items()})
        return found

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _wait(self, word: str) -> str:
        assert self._process.stdout
        for line in self._process.stdout:
            for known in ("READY", "EQUAL", "DONE"):
                if line.startswith(known):
                    self.heard[known] = line.removeprefix(known)
            if line.startswith(word):
                return self.heard[word]
        sys.exit(f"{self._process.args} ended before it said {word}")


def _speed_table(
    racers: dict[str, _Racer], equal: dict[str, Any], arguments: argparse.Namespace
) -> str:
    tokens = BATCH_SIZE * LENGTH
    lines = [
        f"### Speed: {arguments.rounds} interleaved rounds of {arguments.steps} AdamW steps, "
        "nanoGPT's weights in both",
        "",
        "| | tokens/s, median | slowest and fastest round | ms per step | CPU-ms per step |",
        "|---|---|---|---|---|",
    ]
    medians = {}
    for name, racer in racers.items():
        seconds = [r["seconds"] for r in racer.rounds]
        cpu = statistics.median(r["cpu_seconds"] for r in racer.rounds)
        medians[name] = statistics.median(seconds)
        lines.append(
            f"| {name} | {tokens / medians[name]:,.0f} | {tokens / max(seconds):,.0f} to "
            f"{tokens / min(seconds):,.0f} | {1e3 * medians[name]:.1f} | {1e3 * cpu:.1f} |"
        )
    lines += [
        "",
        f"maxlm steps at {medians['nanogpt'] / medians['maxlm']:.2f}× nanoGPT's tokens/s. Before "
        f"the race the largest difference between logits was {equal['logits_max_difference']:.1e} "
        f"(largest logit {equal['logits_max']:.2f}), and between the losses of "
        f"{equal['steps_compared']} AdamW steps on the same batches "
        f"{equal['losses_max_difference']:.1e}.",
    ]
    return "\n".join(lines)


# Processes.


def _torch(arguments: argparse.Namespace, what: str, settings: dict[str, Any]) -> Any:
    command = [str(arguments.torch_python), str(SIDES / "torch_side.py"), what]
    return _checked([*command, json.dumps(settings)], arguments.nanogpt)


def _maxlm(command: list[str], folder: Path) -> str:
    return _checked([sys.executable, "-m", "maxlm.cli.main", *command], folder).stdout


def _checked(command: list[str], folder: Path) -> subprocess.CompletedProcess:
    done = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True)
    if done.returncode:
        shown = " ".join(command)
        sys.exit(
            f"{shown}\nended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
    return done


def _environment() -> dict[str, str]:
    return os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}


if __name__ == "__main__":
    main()
