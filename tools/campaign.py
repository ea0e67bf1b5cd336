"""The long measurements, one after another; their tables go to docs/measurements/.

    make campaign
    python tools/campaign.py --only cpu loader
    python tools/campaign.py --nanogpt ../nanoGPT --books ../books

A part that lacks something (a checkout, a corpus) is skipped, and says what it lacks. Run it on a
quiet machine: every page names the machine, the versions and the load before the measurement.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
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
    """One measurement: a program of this folder and what it is given.

    Attributes:
        name: of the part and of its page.
        title: heading of the page.
        program: file in tools/.
        shown: arguments as the page shows them.
        hidden: further arguments, which name folders of this machine.
        lacks: why it cannot run; None: it can.
    """

    name: str
    title: str
    program: str
    shown: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    lacks: str | None = None


def main() -> int:
    """Run the parts; 1 when one failed."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--only", nargs="+", metavar="PART", help="some of the parts")
    parser.add_argument("--list", action="store_true", help="say what would run, and run nothing")
    parser.add_argument(
        "--nanogpt", default=os.environ.get("NANOGPT"),
        help="checkout of nanoGPT with its data prepared (or $NANOGPT)",
    )  # fmt: skip
    parser.add_argument(
        "--torch-python", default=os.environ.get("TORCH_PYTHON"),
        help="Python with PyTorch (or $TORCH_PYTHON); unset: this one, if it has",
    )  # fmt: skip
    parser.add_argument(
        "--books", default=os.environ.get("BOOKS", str(ROOT / "../shared/data/pretrain-books-en")),
        help="folder of *.jsonl.gz with a field `text` (or $BOOKS)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/measurements")
    arguments = parser.parse_args()
    parts = campaign(arguments)
    unknown = set(arguments.only or ()) - {part.name for part in parts}
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(p.name for p in parts)}")
    wanted = [part for part in parts if not arguments.only or part.name in arguments.only]
    failed = []
    for part in wanted:
        if part.lacks:
            print(f"{part.name}: skipped, {part.lacks}", flush=True)
        elif arguments.list:
            print(f"{part.name}: tools/{part.program} {' '.join(part.shown)}")
        elif not measure(part, arguments.output):
            failed.append(part.name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def campaign(arguments: argparse.Namespace) -> list[Part]:
    """Every part, in order."""
    books = Path(arguments.books)
    no_books = None if any(books.glob("*.jsonl.gz")) else f"no *.jsonl.gz in {books} (--books)"
    no_nanogpt = _no_nanogpt(arguments)
    hidden = ("--nanogpt", str(arguments.nanogpt))
    if arguments.torch_python:
        hidden += ("--torch-python", arguments.torch_python)
    has_compiler = importlib.util.find_spec("libtpu") is not None
    no_compiler = None if has_compiler else "there is no TPU compiler here (maxlm[tpu] has it)"
    loader, nanogpt = "bench_loader.py", "compare_nanogpt.py"
    curve = ("--set", "eval.every=50 steps")
    return [
        Part("cpu", "Train steps on a CPU", "bench_cpu.py", ("--matmuls",)),
        Part("loader", "Loader, windows cut from the stream", loader),
        Part("loader-whole", "Loader, whole documents", loader, ("--packing", "whole")),
        Part("tokenize", "Tokenizing against bare SentencePiece", "bench_tokenize.py",
             ("--rounds", "5"), (str(books),), no_books),
        Part("nanogpt-speed", "Train steps against nanoGPT", nanogpt, ("--speed",), hidden,
             no_nanogpt),
        Part("nanogpt-learning", "Learning against nanoGPT", nanogpt,
             ("--learning", "--seeds", str(arguments.seeds), *curve), hidden, no_nanogpt),
        Part("plan-goldens", "Runs for pods against their golden plans", "plan_goldens.py",
             lacks=no_compiler),
        Part("plan-search", "A search against compiling every layout", "check_search.py",
             lacks=no_compiler),
    ]  # fmt: skip


def _no_nanogpt(arguments: argparse.Namespace) -> str | None:
    if not arguments.nanogpt:
        return "no checkout of nanoGPT is named (--nanogpt; tools/compare_nanogpt.py says how)"
    if not arguments.torch_python and importlib.util.find_spec("torch") is None:
        return "this Python has no torch and none is named (--torch-python)"
    return None


def measure(part: Part, output: Path) -> bool:
    """Run one part, showing what it prints, and write its page; False when it failed."""
    shown = [f"'{word}'" if " " in word else word for word in part.shown]
    command = " ".join(["python", f"tools/{part.program}", *shown])
    print(f"{part.name}: {command}", flush=True)
    load, start = os.getloadavg()[0], time.time()
    process = subprocess.Popen(
        [sys.executable, str(TOOLS / part.program), *part.shown, *part.hidden],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line.rstrip("\n"))
    if process.wait():
        return False
    records = [json.loads(line) for line in lines if line.startswith("{")]
    # A program that makes its own table prints it after its records.
    table = "\n".join(line for line in lines if not line.startswith("{")).strip()
    page = [
        f"# {part.title}",
        "",
        f"`{command}` on {time.strftime('%Y-%m-%d')}, {(time.time() - start) / 60:.1f} minutes, "
        f"load {load:.1f} before it began. {machine()}.",
        "",
        table or to_table(records),
        "",
    ]
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{part.name}.md"
    path.write_text("\n".join(page))
    print(f"{part.name}: wrote {path}", flush=True)
    return True


def to_table(records: list[dict[str, Any]]) -> str:
    """Markdown with a row for each field and a column for each record."""
    fields = list(dict.fromkeys(field for record in records for field in record))
    heads = [str(record.get("case", "value")) for record in records]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(records) + 1) + "|"]
    for field in fields:
        if field != "case":
            cells = [_cell(record.get(field, "")) for record in records]
            lines.append(f"| {field} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(_cell(item) for item in value)
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def machine() -> str:
    """The processor, its cores, memory and the versions that matter, in words."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        memory_text = f", {memory:.0f} GiB"
    except (OSError, ValueError):
        memory_text = ""
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "numpy"))
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores{memory_text}; commit {commit}, "
        f"Python {platform.python_version()}, {versions}"
    )


if __name__ == "__main__":
    sys.exit(main())
