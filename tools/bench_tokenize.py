"""`maxlm data tokenize` against bare SentencePiece on the same text, cores and minutes: a JSON line.

    python tools/bench_tokenize.py ../shared/data/pretrain-books-en --files 4

Bare: as many processes as workers, each with its share of the documents in memory, calling the
library's `encode` on each and dropping the ids; reading, starting and importing are not timed.
maxlm: files to a finished store, all of it timed. Rounds alternate; the medians are compared, by
the clock and by CPU time (which other programs on the machine disturb less).
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Train a tokenizer on the text, then measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="of *.jsonl.gz with a field `text`")
    parser.add_argument("--files", type=int, help="only the first so many")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocab-size", type=int, default=8192)
    arguments = parser.parse_args()
    files = [str(path) for path in sorted(Path(arguments.folder).glob("*.jsonl.gz"))]
    files = files[: arguments.files]
    if not files:
        parser.error(f"{arguments.folder}: no *.jsonl.gz there")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = f"{folder}/tokenizer"
        _train(files, arguments.vocab_size, tokenizer)
        rounds: dict[str, list[dict[str, float]]] = {"bare": [], "maxlm": []}
        for number in range(arguments.rounds):
            rounds["bare"].append(_bare(files, f"{tokenizer}/tokenizer.model", arguments.workers))
            output = f"{folder}/store{number}"
            rounds["maxlm"].append(_maxlm(files, tokenizer, output, arguments.workers))
    print(json.dumps(_report(files, arguments, rounds)))


def _train(files: list[str], vocab_size: int, output: str) -> None:
    from maxlm.data.tokenizers import train_sentencepiece

    texts = (text for file in files for text in _texts(file))
    train_sentencepiece(texts, vocab_size=vocab_size, max_bytes=5_000_000).save(output)


def _bare(files: list[str], model: str, workers: int) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    barrier = context.Barrier(workers)
    processes = [
        context.Process(target=_encode, args=(files, model, rank, workers, barrier, results))
        for rank in range(workers)
    ]
    for process in processes:
        process.start()
    parts = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return {
        "seconds": max(part["stop"] for part in parts) - min(part["start"] for part in parts),
        "cpu_seconds": sum(part["cpu_seconds"] for part in parts),
        "bytes": sum(part["bytes"] for part in parts),
        "tokens": sum(part["tokens"] for part in parts),
    }


def _encode(
    files: list[str], model: str, rank: int, workers: int, barrier: Any, results: Any
) -> None:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    # Longest first onto the least loaded, so that the bare run wastes no core either.
    texts = sorted((text for file in files for text in _texts(file)), key=len, reverse=True)
    loads, mine = [0] * workers, []
    for text in texts:
        target = loads.index(min(loads))
        loads[target] += len(text)
        if target == rank:
            mine.append(text)
    size = sum(len(text.encode()) for text in mine)
    barrier.wait()
    start, cpu = time.monotonic(), time.process_time()
    tokens = sum(len(processor.encode(text)) for text in mine)
    stop, used = time.monotonic(), time.process_time() - cpu
    results.put(
        {"start": start, "stop": stop, "cpu_seconds": used, "bytes": size, "tokens": tokens}
    )


def _maxlm(files: list[str], tokenizer: str, output: str, workers: int) -> dict[str, float]:
    from maxlm.data.tokenize.run import tokenize

    cpu, start = _cpu_seconds(), time.monotonic()
    result = tokenize(files, tokenizer=tokenizer, output=output, workers=workers)
    split = result.store.manifest["splits"]["train"]
    return {
        "seconds": time.monotonic() - start,
        "cpu_seconds": _cpu_seconds() - cpu,
        "bytes": split["bytes"],
        "tokens": split["tokens"] - 2 * split["documents"],
    }


def _report(
    files: list[str], arguments: argparse.Namespace, rounds: dict[str, list[dict[str, float]]]
) -> dict[str, Any]:
    middle = {
        name: {key: statistics.median(r[key] for r in found) for key in found[0]}
        for name, found in rounds.items()
    }
    assert middle["bare"]["bytes"] == middle["maxlm"]["bytes"]
    return {
        "bench": "tokenize",
        "files": len(files),
        "workers": arguments.workers,
        "rounds": arguments.rounds,
        "megabytes": round(middle["maxlm"]["bytes"] / 1e6, 2),
        "same_tokens": middle["bare"]["tokens"] == middle["maxlm"]["tokens"],
        **{
            f"{name}_{key}": round(value, 2)
            for name, found in middle.items()
            for key, value in found.items()
            if "seconds" in key
        },
        "ratio": round(middle["bare"]["seconds"] / middle["maxlm"]["seconds"], 3),
        "cpu_ratio": round(middle["bare"]["cpu_seconds"] / middle["maxlm"]["cpu_seconds"], 3),
    }


def _texts(file: str) -> list[str]:
    with gzip.open(file, "rt", encoding="utf-8", newline="\n") as lines:
        return [json.loads(line)["text"] for line in lines]


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


if __name__ == "__main__":
    main()
