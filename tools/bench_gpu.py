"""Everything that is to be measured on a GPU, in one call and within nine minutes.

    python tools/bench_gpu.py --output OUT --store stores/books

In order of what matters most: every attention implementation against the reference on packed
batches, the 1.3B case with full and with packed rows, the same step in PyTorch, and as much of the
other cases as the time allows. Each part is a program of its own; what it prints goes to
`OUT/PART.jsonl`, its messages to `OUT/PART.log`, and `OUT/summary.json` says how each part ended. A
part that lacks something (PyTorch, pytest) is skipped and says so. The exit status is 1 when a part
failed. Without `--store`, packed rows are of the shipped plays.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent


@dataclass(frozen=True)
class Part:
    """One program.

    Attributes:
        name: of its files.
        arguments: of Python.
        seconds: it is ended after this.
        needs: modules without which it is skipped.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: float
    needs: tuple[str, ...] = ()


def main() -> int:
    """Run the parts; 1 when one failed."""
    arguments = _parse()
    arguments.output.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + arguments.seconds
    summary: list[dict[str, Any]] = []
    for part in parts(arguments):
        summary.append(_run(part, arguments.output, end - time.monotonic()))
        print(json.dumps(summary[-1]), flush=True)
        (arguments.output / "summary.json").write_text(json.dumps(summary, indent=1))
    return int(any(record["status"] == "failed" for record in summary))


def _parse() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--store", help="token store of the rows; unset: the shipped plays")
    parser.add_argument("--seconds", type=float, default=530, help="for everything")
    parser.add_argument("--measure-seconds", type=float, default=12, help="of steps, per case")
    parser.add_argument("--only", nargs="+", metavar="PART", help="some of the parts")
    parser.add_argument("--tiny", action="store_true", help="try it all out at a tiny size")
    return parser.parse_args()


def parts(arguments: argparse.Namespace) -> list[Part]:
    """What runs, the most important first."""
    shared = ["--seconds", str(arguments.measure_seconds)]
    shared += ["--store", arguments.store] if arguments.store else []
    shared += ["--tiny", "--torch-compile", "off"] if arguments.tiny else []

    def train(name: str, *options: str, seconds: float = 200, needs: tuple[str, ...] = ()) -> Part:
        command = ("tools/bench_train.py", "--cases", *options, *shared)
        return Part(name, command, seconds, needs)

    both = ("--rows", "full", "packed")
    kernels = "tests/kernels/attention"
    found = [
        train("gpt3-xl", "gpt3-xl", *both),
        Part("attention-tests", ("-m", "pytest", "-q", "-x", kernels), 120, ("pytest",)),
        Part("attention-speed", ("tools/bench_attention.py",), 90),
        train("gpt3-xl-torch", "gpt3-xl", *both, "--peer", "torch", seconds=240, needs=("torch",)),
        train("gpt3-xl-keep-all", "gpt3-xl", "--set", "parallel.rematerialization=none"),
        train("llama-1b", "llama-1b", *both),
        train("long", "llama-1b", "--length", "8192", "32768", *both),
        train("llama-3b", "llama-3b"),
        train("small", "gpt2-124m", "gpt2-350m"),
    ]
    return [part for part in found if not arguments.only or part.name in arguments.only]


def _run(part: Part, output: Path, left: float) -> dict[str, Any]:
    record: dict[str, Any] = {"part": part.name, "command": "python " + " ".join(part.arguments)}
    lacks = [name for name in part.needs if importlib.util.find_spec(name) is None]
    program = next(a for a in part.arguments if "/" in a)
    if not (ROOT / program).exists():
        lacks.append(program)
    if lacks or left < 15:
        why = f"lacks {', '.join(lacks)}" if lacks else "no time left"
        return record | {"status": "skipped", "why": why}
    # The tests' default is a CPU; here they are to find whatever there is.
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.setdefault("JAX_PLATFORMS", "")
    start = time.monotonic()
    with (
        open(output / f"{part.name}.jsonl", "w") as out,
        open(output / f"{part.name}.log", "w") as log,
    ):
        running = subprocess.Popen(
            [sys.executable, *part.arguments],
            cwd=ROOT,
            env=environment,
            stdout=out,
            stderr=log,
            start_new_session=True,
        )
        try:
            status = running.wait(min(part.seconds, left))
        except subprocess.TimeoutExpired:
            status = -1
        finally:
            # With the programs that it started: one left behind would keep the GPU's memory.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()
    ended = {0: "done", -1: "out of time"}.get(status, "failed")
    return record | {"status": ended, "seconds": round(time.monotonic() - start, 1)}


if __name__ == "__main__":
    sys.exit(main())
