"""A small store of real text and a small config on it, for tests that run whole trainings."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from maxlm.cli.main import main
from maxlm.cli.train import pretrain
from maxlm.config.load import load_config
from maxlm.config.schema import ParallelConfig
from maxlm.data.shards import ShardWriter
from maxlm.data.tokenizers import load_tokenizer
from maxlm.evaluate.hooks import training_hooks
from maxlm.parallel.mesh import make_mesh
from maxlm.parallel.placement import place_batch
from maxlm.train.checkpoints import Checkpoints
from maxlm.train.loop import Hook
from maxlm.train.run_folder import RunFolder
from maxlm.train.sinks import read_metrics

ROOT = Path(__file__).parent.parent
TEXT = ROOT / "maxlm" / "data" / "samples" / "tinyshakespeare.txt"

# What tests/conftest.py tells XLA, but for the number of devices: as runs in this process are compiled.
FLAGS = " ".join(f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f)

# Compiles a step as users' are, where two programs (of runs of other lengths) are to give the same bits.
AS_USERS = (
    {"xla_cpu_use_fusion_emitters": True}
    if "use_fusion_emitters" in os.environ["XLA_FLAGS"]
    else {}
)

CONFIG = {
    "name": "small",
    "model": {"num_layers": 2, "embed_dim": 32, "num_heads": 2},
    "data": {"length": 32, "batch_size": 8},
    "train": {"duration": "40 steps"},
    "optimizer": {"kind": "muon", "learning_rate": 3e-3},
    "checkpoint": {"every": "7 steps"},
    "eval": {"every": "20 steps", "prompts": ["ROMEO:"], "sample_tokens": 40},
    "logging": {"every": "1 steps"},
}


def write_text_store(folder: Path, characters: int = 60_000) -> Path:
    """Split the first characters of Shakespeare by position: 90% train, 10% validation."""
    text = TEXT.read_text()[:characters]
    cut = int(len(text) * 0.9)
    return write_store(folder, {"train": [text[:cut]], "validation": [text[cut:]]})


# Compiles in a second or two, and once for all tests that leave it as it is.
QUICK: dict[str, Any] = {
    "model": {"num_layers": 1, "embed_dim": 16, "num_heads": 2},
    "optimizer": {"kind": "adamw"},
    "train": {"duration": "20 steps"},
    "checkpoint": {"every": "8 steps"},
    "eval": {"every": "8 steps", "prompts": []},
    "logging": {"tensorboard": False},
}


def write_quick_config(folder: Path, store: Path | str, **sections: Any) -> Path:
    """Like `write_config`, for a run of 20 steps that takes little to compile."""
    merged = {
        name: {**QUICK.get(name, {}), **section} if isinstance(section, dict) else section
        for name, section in sections.items()
    }
    return write_config(folder, store, **{**QUICK, **merged})


def write_store(folder: Path, splits: dict[str, list[str]], tokenizer: Any = None) -> Path:
    """Write documents by split into a token store."""
    tokenizer = tokenizer or load_tokenizer("byte")
    tokenizer.save(str(folder / "tokenizer"))
    described = {}
    for name, documents in splits.items():
        writer = ShardWriter(str(folder / name), "00000", "uint16")
        for text in documents:
            ids = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
            writer.add(np.array([i for i in ids if i is not None]), len(text.encode()))
        described[name] = {"shards": [writer.close().to_dict()]}
    manifest = {
        "format_version": 1,
        "dtype": "uint16",
        "tokenizer": {
            "kind": tokenizer.kind,
            "hash": tokenizer.hash,
            "vocab_size": tokenizer.vocab_size,
        },
        "splits": described,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write_config(folder: Path, store: Path | str, **sections: Any) -> Path:
    """Write the small config with its store, output folder and changes by section."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = copy.deepcopy(CONFIG)
    config["output"] = str(folder / "runs")
    config["data"]["mixture"] = {"plays": {"store": str(store)}}
    config["eval"]["sets"] = {"validation": {"store": str(store), "max_tokens": 2000}}
    config["logging"]["compile_cache"] = os.environ["JAX_COMPILATION_CACHE_DIR"]
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section} if isinstance(section, dict) else section
    path = folder / "small.json"  # JSON is YAML
    path.write_text(json.dumps(config))
    return path


@contextmanager
def devices(count: int) -> Iterator[None]:
    """Let runs in this process take the first `count` devices (a small mesh compiles fast)."""

    def first(parallel: ParallelConfig, devices: list | None = None) -> Mesh:
        return make_mesh(parallel, devices or jax.devices()[:count])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maxlm.train.setup.make_mesh", first)
        patch.setattr("maxlm.train.loading.make_mesh", first)
        yield


def train_here(
    config: Path,
    *overrides: str,
    branch_from: str | None = None,
    on: int = 1,
    stop_at: int | None = None,
) -> RunFolder:
    """Train in this process, on the first devices; what dies at `stop_at` is as good as killed."""

    class Killed(BaseException):  # which nothing saves for, as nothing does after SIGKILL
        pass

    def kill(step: int, params: Any) -> list:
        if step == stop_at:
            raise Killed
        return []

    def hooks(run: Any) -> list[Hook]:
        return training_hooks(run) + ([Hook(1, kill)] if stop_at else [])

    loaded = load_config(str(config), list(overrides))
    with devices(on), pytest.MonkeyPatch.context() as patch:
        patch.setattr("maxlm.evaluate.hooks.training_hooks", hooks)
        with contextlib.suppress(Killed):
            pretrain(loaded, branch_from=branch_from, live=False)
    return RunFolder(f"{loaded.output}/{loaded.name}")


@contextmanager
def batches_read() -> Iterator[list[np.ndarray]]:
    """Token ids of every batch that runs in this process train on, one array a step."""
    read: list[np.ndarray] = []

    def place(batch: Any, *where: Any) -> Any:
        read.append(np.array(batch.tokens))
        return place_batch(batch, *where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maxlm.train.loop.place_batch", place)
        yield read


def checksums(run: RunFolder, step: int | None = None) -> dict[str, str]:
    """Every array's checksum in a checkpoint: equal only when every bit is."""
    checkpoints = Checkpoints(run.checkpoints)
    step = checkpoints.steps()[-1] if step is None else step
    return {name: record.checksum for name, record in checkpoints.describe(step).items()}


def losses(run: RunFolder) -> dict[int, float]:
    """Training loss by logged step."""
    return {r["step"]: r["loss"] for r in read_metrics(run.path) if r["kind"] == "train"}


def call(*arguments: str, on: int = 1) -> int:
    """Run the command line in this process; returns its exit code."""
    with devices(on):
        return main(list(arguments))


def child(arguments: list[str], **environment: str) -> subprocess.Popen:
    """Start `maxlm` in a process of its own, on one CPU device unless told otherwise."""
    own = ("XLA_FLAGS", "NPROC", "JAX_OPTIMIZATION_LEVEL")  # of tests/conftest.py
    env = {name: value for name, value in os.environ.items() if name not in own}
    env |= {"JAX_PLATFORMS": "cpu"} | environment
    return subprocess.Popen(
        [sys.executable, "-m", "maxlm.cli.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=env,
    )


def maxlm(*arguments: str, code: int = 0, **environment: str) -> str:
    """Run `maxlm` in a process of its own; returns what it printed. Asserts its exit status."""
    process = child(list(arguments), **environment)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, f"exit {process.returncode}:\n{output}"
    return output
