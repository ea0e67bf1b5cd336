"""Peak memory of `maxlm import hf`, of every process, against what it may be.

    python tools/measure_import.py --model llama3.2-1b              # random weights, one process
    python tools/measure_import.py --model llama3.2-1b --processes 2

Allowed is the process's share of the parameters in float32 plus twice the largest stacked array. Counted is
the most that a process ever had (VmHWM) beyond what importing a model of a few thousand parameters takes,
the checkpoint included. The weights are written as bfloat16 into a temporary folder, and read as users' are.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from tiny_families import tokenizer_of_words

from maxlm.config.derive_model import resolve_model
from maxlm.config.load import load_config
from maxlm.config.schema import ModelConfig
from maxlm.interop.config_json import write_model
from maxlm.interop.registry import family_of_config
from maxlm.interop.safetensors import write_tensors
from maxlm.interop.tensors import tensors_of
from maxlm.model.definition import define

TINY = ModelConfig(num_layers=2, embed_dim=32, num_heads=2, tie_embeddings=True)
VOCAB = 512


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="llama3.2-1b", help="preset of configs/models")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    preset = load_config(f"models/{arguments.model}").model
    with tempfile.TemporaryDirectory() as folder:
        base = measured(resolve_model(TINY, vocab_size=VOCAB, length=64), folder, arguments)[1]
        model = resolve_model(preset, vocab_size=preset.vocab_size, length=2048)
        sizes, peaks = measured(model, folder, arguments)
    allowed = sum(sizes) / arguments.processes + 2 * max(sizes)
    print(
        json.dumps(
            {
                "model": arguments.model,
                "processes": arguments.processes,
                "parameter_mb": round(sum(sizes) / 1e6),
                "largest_array_mb": round(max(sizes) / 1e6),
                "allowed_mb": round(allowed / 1e6),
                "peak_mb": [round((peak - min(base)) / 1e6) for peak in peaks],
            }
        )
    )


def measured(
    model: ModelConfig, folder: str, arguments: argparse.Namespace
) -> tuple[list[int], list[int]]:
    """Bytes of our arrays in float32, and the peak of each process that imported them."""
    theirs = Path(folder) / f"theirs{model.embed_dim}"
    write_folder(model, theirs)
    run = Path(folder) / f"run{model.embed_dim}"
    importing = ["import", "hf", str(theirs), "--output", str(run)]
    program = [sys.executable, "-m", "maxlm.cli.main"]
    if arguments.processes > 1:
        count = str(arguments.processes)
        program += ["launch", "local", "--processes", count, "--", *importing]
        program.append(f"parallel.fsdp={count}")
    else:
        program += importing
    process = subprocess.Popen(program)
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for number in descendants(process.pid):
            peaks[number] = max(peaks.get(number, 0), peak_of(number))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"the import failed: {' '.join(program)}")
    infos = define(model).parameters.values()
    return [4 * math.prod(info.shape) for info in infos], sorted(peaks.values())[
        -arguments.processes :
    ]


def write_folder(model: ModelConfig, folder: Path) -> None:
    """A Llama of this shape with random weights, and a tokenizer of as many words."""
    folder.mkdir(parents=True)
    kind = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    family = family_of_config(kind)
    config = write_model(family, model)
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {t.name: t.shape for t in tensors_of(family, define(model))}
    rng = np.random.default_rng(0)
    dtype = np.dtype(ml_dtypes.bfloat16)
    drawn = ((n, (0.02 * rng.random(s, np.float32)).astype(dtype)) for n, s in shapes.items())
    write_tensors(str(folder), shapes, dtype, drawn, shard_bytes=1_000_000_000)
    (folder / "tokenizer.json").write_text(tokenizer_of_words(model.vocab_size or 0))


def descendants(number: int) -> list[int]:
    """A process and all that it started."""
    found = [number]
    try:
        for task in Path(f"/proc/{number}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += descendants(int(child))
    except OSError:
        pass
    return found


def peak_of(number: int) -> int:
    """The most bytes that a process ever had; 0 where it is gone."""
    try:
        for line in Path(f"/proc/{number}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


if __name__ == "__main__":
    main()
