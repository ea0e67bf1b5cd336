"""MaxText's own compiled programs, read by the planner's reader: its figures beside the known ones.

    python tools/compare_maxtext.py --python ENV/bin/python --folder programs

`ENV` is an environment of Python 3.12 with `maxtext[tpu]==0.2.5` (`uv pip install --resolution=lowest`), then
`-U jax==0.12.0.1 libtpu==0.0.52 flax`. MaxText's ahead-of-time compile runs there, for its tuned llama3-8b on
v5p-128 and for llama2-7b on v5e-64, about two minutes and 3 GB of memory each; what it compiled is kept in
`--folder` and not compiled again. Run this tool itself with the same jax and libtpu, for the kernels'
schedules. It prints one JSON line per job and ends with 1 where a figure is more than `--tolerance` off.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maxlm.config.derive import resolve_model
from maxlm.config.load import load_config
from maxlm.model.count import train_flops_per_token
from maxlm.parallel.chips import CHIPS, GIB
from maxlm.plan.reading.read import Reading, read_program

_BLOCKS = (
    "sa_block_q",
    "sa_block_kv",
    "sa_block_kv_compute",
    "sa_block_q_dkv",
    "sa_block_kv_dkv",
    "sa_block_kv_dkv_compute",
    "sa_block_q_dq",
    "sa_block_kv_dq",
)
_COMMON = (
    "run_name=compare",
    "base_output_directory=/tmp/maxtext",
    "dataset_type=synthetic",
    "compile_topology_num_slices=1",
    "use_iota_embed=true",
    "attention=flash",
    *(f"{name}=1024" for name in _BLOCKS),
)

# Runs in MaxText's environment: its command, with what it compiles written down.
_DRIVER = """
import json, runpy, sys
import jax
out, first = sys.argv[1], jax.stages.Lowered.compile
def compile(self, *arguments, **options):
    compiled = first(self, *arguments, **options)
    text = compiled.as_text()
    if "train_step" in text[:200]:
        peak = compiled.memory_analysis().peak_memory_in_bytes
        open(out + ".json", "w").write(json.dumps({"peak_bytes": peak}))
        open(out + ".hlo", "w").write(text)
    return compiled
jax.stages.Lowered.compile = compile
sys.argv = ["train_compile", *sys.argv[2:]]
runpy.run_module("maxtext.trainers.pre_train.train_compile", run_name="__main__")
"""


@dataclass(frozen=True)
class Job:
    """One of MaxText's programs.

    Attributes:
        name: of the file that keeps it.
        model: preset of ours with the same shapes, for model FLOPs.
        chip: that it is compiled for.
        length: of a row.
        rows: of a chip and step.
        arguments: of MaxText's command.
        known: figures of the same program by an independent reader.
    """

    name: str
    model: str
    chip: str
    length: int
    rows: int
    arguments: tuple[str, ...]
    known: dict[str, float]


JOBS = (
    Job(
        name="llama3-8b-v5p-128",
        model="models/llama3-8b",
        chip="v5p",
        length=8192,
        rows=2,
        arguments=(
            "model_name=llama3-8b",
            "max_target_length=8192",
            "per_device_batch_size=2",
            "compile_topology=v5p-128",
            "remat_policy=minimal_with_context",
        ),
        known={
            "step_seconds": 3.17,
            "mfu_percent": 58.0,
            "compute_seconds": 2.60,
            "kernel_seconds": 0.452,
            "wire_gigabytes": 61.0,
            "all-gather": 29.6,
            "all-reduce": 31.6,
            "overlapped_gigabytes": 0.0,
            "peak_gibibytes": 56.6,
        },
    ),
    Job(
        name="llama2-7b-v5e-64",
        model="models/llama2-7b",
        chip="v5e",
        length=4096,
        rows=1,
        arguments=(
            "model_name=llama2-7b",
            "max_target_length=4096",
            "per_device_batch_size=1",
            "compile_topology=v5e-64",
            "remat_policy=full",
        ),
        known={"step_seconds": 1.85, "mfu_percent": 48.2, "peak_gibibytes": 4.0},
    ),
)


def main() -> int:
    """Compile what is not there, read it, compare."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument(
        "--python", help="of an environment with MaxText; unset: nothing is compiled"
    )
    parser.add_argument("--folder", required=True, help="where its programs are kept")
    parser.add_argument("--tolerance", type=float, default=0.02, help="relative")
    arguments = parser.parse_args()
    is_off = False
    for job in JOBS:
        text, peak = compiled_program(job, Path(arguments.folder), arguments.python)
        reading = read_program(text, chip=CHIPS[job.chip])
        found = figures(job, reading, peak)
        off = {
            key: f"{found[key]:.4g}, known {value:g}"
            for key, value in job.known.items()
            if abs(found.get(key, 0.0) - value) > arguments.tolerance * abs(value)
        }
        is_off |= bool(off)
        rounded = {key: round(value, 4) for key, value in found.items()}
        record = {"job": job.name, "found": rounded, "known": job.known, "off": off}
        print(json.dumps(record | {"notes": reading.notes}), flush=True)
    return int(is_off)


def compiled_program(job: Job, folder: Path, python: str | None) -> tuple[str, int]:
    """Text and peak bytes of a job's program, compiled if it is not kept."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / job.name
    program, memory = path.with_name(f"{job.name}.hlo"), path.with_name(f"{job.name}.json")
    if not program.exists():
        if python is None:
            raise SystemExit(f"{program} is not there: say with --python what compiles it")
        alone = {
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "JAX_PLATFORMS": "cpu",
        }
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | alone
        command = [python, "-c", _DRIVER, str(path), *_COMMON, *job.arguments]
        child = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        if child.returncode or not program.exists():
            raise SystemExit(f"{job.name} was not compiled:\n{child.stderr[-2000:]}")
    return program.read_text(), int(json.loads(memory.read_text())["peak_bytes"])


def figures(job: Job, reading: Reading, peak_bytes: int) -> dict[str, float]:
    """What is compared; gigabytes are of the wire, per chip and step."""
    config = load_config([job.model])
    model = resolve_model(config.model, vocab_size=config.model.vocab_size or 0, length=job.length)
    flops = train_flops_per_token(model, job.length) * job.length * job.rows
    time = reading.time
    sent: dict[str, float] = defaultdict(float)
    for c in reading.collectives:
        sent[c.kind] += c.wire_bytes / 1e9
    overlapped = sum(c.wire_bytes for c in reading.collectives if c.is_overlapped)
    found: dict[str, Any] = {
        "step_seconds": time.total,
        "mfu_percent": 100 * flops / (time.total * CHIPS[job.chip].peak),
        "compute_seconds": time.compute,
        "kernel_seconds": time.kernels,
        "blocking_seconds": time.blocking,
        "overlapped_seconds": time.overlapped,
        "wire_gigabytes": sum(sent.values()),
        "overlapped_gigabytes": overlapped / 1e9,
        "peak_gibibytes": peak_bytes / GIB,
    }
    return found | sent


if __name__ == "__main__":
    sys.exit(main())
