"""Speed of maxlm's train step on whatever is at hand, CPU, GPU or TPU: one JSON line per case.

    python tools/bench_train.py --cases gpt3-xl --rows full packed --store stores/books
    python tools/bench_train.py --cases gpt3-xl --peer torch        the same step in PyTorch too
    python tools/bench_train.py --tiny                              every family, seconds on a CPU
    python tools/bench_train.py --list

Each line: tokens/s, step time (median, least, most over rounds), MFU (maxlm/model/count.py), peak
memory, seconds to compile and from process start to the end of the first step, the host's time to
dispatch a step, versions, device, mesh, attention kernel and rematerialisation. Every case runs in
a process of its own; one that fails gives a line with `error`, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maxlm.config.choices import PositionKind
from maxlm.config.load import load_config

TOOLS = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Case:
    """A model at a size that one accelerator of 80 GB and more holds.

    Attributes:
        presets: of the config, later ones win.
        length: tokens a row.
        batch_size: rows of the whole mesh.
        overrides: further `key=value`.
    """

    presets: tuple[str, ...]
    length: int
    batch_size: int
    overrides: tuple[str, ...] = ()


CASES = {
    "gpt2-124m": Case(("models/gpt2-124m",), 1024, 32),
    "gpt2-350m": Case(("models/gpt2-medium",), 1024, 32),
    "llama-1b": Case(
        ("models/llama3.2-1b",), 2048, 16, ("parallel.rematerialization=matmuls",)
    ),
    "gpt3-xl": Case(("models/gpt3-xl",), 2048, 16, ("parallel.rematerialization=matmuls",)),
    # 1.74B parameters, of which a token visits 0.51B.
    "moe-1.7b": Case(
        ("models/qwen3-0.6b",), 2048, 16,
        (
            "model.num_experts=16", "model.experts_per_token=2", "model.expert_mlp_dim=1024",
            "parallel.rematerialization=matmuls",
        ),
    ),
    "llama-3b": Case(("models/llama3.2-3b",), 2048, 8, ("parallel.rematerialization=attention",)),
}  # fmt: skip
# Whatever the family, small enough for a CPU and a test.
TINY = (
    "model.num_layers=2",
    "model.embed_dim=32",
    "model.num_heads=2",
    "model.num_kv_heads=null",
    "model.head_dim=16",
    "model.mlp_dim=64",
    "model.vocab_size=257",
)


def main() -> int:
    """Run the asked cases, each in a process of its own; 1 when one failed."""
    arguments = _parse()
    if arguments.list:
        for name, case in CASES.items():
            print(json.dumps({"case": name, **asdict(case)}))
        return 0
    failed = False
    for request in requests(arguments):
        with tempfile.TemporaryDirectory(prefix="bench-train-") as scratch:
            record = _run(request, Path(scratch))
        for line in record:
            print(json.dumps(line), flush=True)
            failed |= "error" in line
    return int(failed)


def _parse() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--length", type=int, nargs="+", help="tokens a row; unset: the case's")
    parser.add_argument("--batch", type=int, help="rows; unset: as many tokens as the case has")
    parser.add_argument("--rows", nargs="+", choices=["full", "packed"], default=["full"])
    parser.add_argument("--store", help="token store of the rows; unset: the shipped plays")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", help="options")
    parser.add_argument("--hardware", help="preset such as hardware/h200; unset: none")
    parser.add_argument("--tiny", action="store_true", help="two layers of width 32, length 64")
    parser.add_argument("--seconds", type=float, default=20, help="of measuring, per case")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", choices=["torch"], help="run this program's step too")
    parser.add_argument("--torch-python", default=sys.executable, help="that has PyTorch")
    parser.add_argument("--torch-compile", choices=["on", "off"], default="on")
    return parser.parse_args()


def requests(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One per case, length and kind of rows."""
    found = []
    for name in arguments.cases:
        case = CASES[name]
        for length in arguments.length or [64 if arguments.tiny else case.length]:
            batch = arguments.batch or max(1, case.batch_size * case.length // length)
            for rows in arguments.rows:
                overrides = [*case.overrides, *(TINY if arguments.tiny else ())]
                overrides += [f"data.length={length}"]
                if load_config(list(case.presets)).model.positions is PositionKind.LEARNED:
                    # As many as the rows need, also beyond the published ones.
                    overrides += [f"model.max_length={length}"]
                request = {
                    "case": name,
                    "presets": [*case.presets, *filter(None, [arguments.hardware])],
                    "batch_size": 2 if arguments.tiny and not arguments.batch else batch,
                    "overrides": overrides + arguments.set,
                    "rows": rows,
                }
                shared = ("store", "seconds", "rounds", "peer", "torch_python", "torch_compile")
                found.append(request | {key: getattr(arguments, key) for key in shared})
    return found


def _run(request: dict[str, Any], scratch: Path) -> list[dict[str, Any]]:
    """Records of one case: ours, and with a peer its own and the ratio."""
    label = {key: request[key] for key in ("case", "rows")}
    request = request | {"exchange": str(scratch / "exchange") if request["peer"] else None}
    ours = label | _side([sys.executable, str(TOOLS / "bench_train_side.py")], request)
    if not request["peer"] or "error" in ours:
        return [ours]
    command = [request["torch_python"], str(TOOLS / "torch_peer" / "train_step.py")]
    theirs = label | {"side": "torch"} | _side(command, request)
    records = [ours, theirs]
    if "error" not in theirs:
        ratio = ours["tokens_per_second"] / theirs["tokens_per_second"]
        records.append(label | {"side": "ratio", "maxlm_over_torch": round(ratio, 4)})
    return records


def _side(command: list[str], request: dict[str, Any]) -> dict[str, Any]:
    """The last line of JSON that a side prints; its last words where it prints none."""
    done = subprocess.run([*command, json.dumps(request)], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return {"error": done.stderr.strip()[-1500:] or f"exit status {done.returncode}"}
    return json.loads(lines[-1])


if __name__ == "__main__":
    sys.exit(main())
