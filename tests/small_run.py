"""A small store of real text and a small config on it, for tests that run whole trainings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from maxlm.data.shards import ShardWriter
from maxlm.data.tokenizers import load_tokenizer

ROOT = Path(__file__).parent.parent
TEXT = ROOT / "maxlm" / "data" / "samples" / "tinyshakespeare.txt"

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
    tokenizer = load_tokenizer("byte")
    tokenizer.save(str(folder / "tokenizer"))
    cut = int(len(text) * 0.9)
    splits = {}
    for name, part in (("train", text[:cut]), ("validation", text[cut:])):
        writer = ShardWriter(str(folder / name), "00000", "uint16")
        ids = np.array([256, *tokenizer.encode(part), 256])
        writer.add(ids, len(part.encode()))
        splits[name] = {"shards": [writer.close().to_dict()]}
    manifest = {
        "format_version": 1,
        "dtype": "uint16",
        "tokenizer": {"kind": "byte", "hash": tokenizer.hash, "vocab_size": 257},
        "splits": splits,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write_config(folder: Path, store: Path, **sections: dict) -> Path:
    """Write the small config with its store, output folder and changes by section."""
    config = {name: dict(v) if isinstance(v, dict) else v for name, v in CONFIG.items()}
    config["output"] = str(folder / "runs")
    config["data"]["mixture"] = {"plays": {"store": str(store)}}
    config["eval"]["sets"] = {"validation": {"store": str(store), "max_tokens": 2000}}
    config["logging"]["compile_cache"] = str(folder.parent / "compile_cache")
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section}
    path = folder / "small.json"  # JSON is YAML
    path.write_text(json.dumps(config))
    return path


def child(arguments: list[str], **environment: str) -> subprocess.Popen:
    """Start `maxlm` in a process of its own, on one CPU device unless told otherwise."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "NPROC": ""} | environment
    env = {name: value for name, value in env.items() if value}
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
