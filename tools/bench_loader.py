"""Measures the loader on one core: tokens per second from a token store to finished batches.

In comes a token store, or nothing, in which case one of random tokens in documents of log-normal
length is made in a temporary folder; out goes one line of JSON. The batches are complete: targets,
loss weights, segment ids and positions. CRC checks are part of the first pass over a store, so both
the first reading of every block and the ones after it are reported. Time is CPU time of the single
thread that makes the batches, median of several rounds.

    python tools/bench_loader.py
    python tools/bench_loader.py --store stores/books --length 2048 --batch-size 64
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time

import numpy as np

from maxlm import storage
from maxlm.config.schema import DataConfig, parse_duration
from maxlm.data.loader import Loader
from maxlm.data.open_sources import open_sources
from maxlm.data.shards import ShardWriter
from maxlm.data.store import FORMAT_VERSION, MANIFEST

SHARD_TOKENS = 50_000_000


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--store", help="token store; none: one is made")
    parser.add_argument("--split", default="train")
    parser.add_argument(
        "--tokens", type=float, default=200e6, help="size of the store that is made"
    )
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--packing", choices=["cut", "whole"], default="cut")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--round-seconds", type=float, default=1.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-loader-") as folder:
        if not arguments.store:
            arguments.store = os.path.join(folder, "store")
            make_store(arguments.store, int(arguments.tokens))
        print(json.dumps(measure(arguments)))


def make_store(path: str, num_tokens: int) -> None:
    """Write a store of random uint16 tokens; document lengths are log-normal, median 400."""
    generator = np.random.default_rng(0)
    shards = []
    for number in range(-(-num_tokens // SHARD_TOKENS)):
        writer = ShardWriter(os.path.join(path, "train"), f"{number:05}", "uint16")
        size = min(SHARD_TOKENS, num_tokens - number * SHARD_TOKENS)
        tokens = generator.integers(0, 32_000, size, dtype=np.uint16)
        lengths = np.maximum(2, generator.lognormal(6, 1.1, size // 50)).astype(np.int64)
        starts = np.append(0, np.cumsum(lengths))
        starts = np.append(starts[starts < size], size)
        for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            writer.add(tokens[start:stop], 0)
        shards.append(writer.close().to_dict())
    manifest = {
        "format_version": FORMAT_VERSION,
        "dtype": "uint16",
        "tokenizer": {"hash": "random", "kind": "random", "vocab_size": 32_000},
        "splits": {"train": {"shards": shards}},
    }
    storage.write_text(os.path.join(path, MANIFEST), json.dumps(manifest))


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Median speed of `batch` over the store, single-threaded."""
    source = {"store": arguments.store, "split": arguments.split}
    data = DataConfig.model_validate(
        {
            "mixture": {"bench": source},
            "length": arguments.length,
            "packing": arguments.packing,
            "workers": 0,
        }
    )
    begin = time.perf_counter()
    loader = Loader(
        open_sources(data),
        data,
        batch_size=arguments.batch_size,
        total=parse_duration("1e12 tokens"),
    )
    open_seconds = time.perf_counter() - begin
    rows = loader.timeline.phases[0].rows_per_epoch
    assert rows
    step_tokens = arguments.batch_size * arguments.length
    first, step = speed(loader, 0, rows // arguments.batch_size, step_tokens, float("inf"))
    rounds = []
    for _ in range(arguments.rounds):
        rate, step = speed(loader, step, step + 10**9, step_tokens, arguments.round_seconds)
        rounds.append(rate)
    return {
        "tokens_per_second_per_core": round(statistics.median(rounds)),
        "slowest_round": round(min(rounds)),
        "fastest_round": round(max(rounds)),
        "first_pass_with_checksums": round(first),
        "length": arguments.length,
        "batch_size": arguments.batch_size,
        "packing": arguments.packing,
        "store_tokens": loader.sources["bench"].tokens.num_tokens,
        "store_documents": loader.sources["bench"].tokens.num_documents,
        "open_seconds": round(open_seconds, 3),
    }


def speed(
    loader: Loader, first: int, stop: int, step_tokens: int, seconds: float
) -> tuple[float, int]:
    """Tokens per CPU-second of steps from `first`, and the step after the last one made."""
    step, begin, now = first, time.thread_time(), 0.0
    while step < stop and now < seconds:
        loader.batch(loader.timeline.at_step(step).cursor)
        step += 1
        now = time.thread_time() - begin
    return (step - first) * step_tokens / max(now, 1e-9), step


if __name__ == "__main__":
    main()
