"""What is in a token store: counts, lengths of documents, a decoded window, and whether it is whole.

In goes an open `TokenStore`; out come plain dicts (for JSON) and the text that shows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from maxlm.data.shards import shard_sha256
from maxlm.data.store import TokenSplit, TokenStore
from maxlm.data.tokenizers import Tokenizer
from maxlm.errors import DataError, MaxLMError

_BAR = 40
# Control characters would act on the terminal; their pictures do not.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}


def describe_store(store: TokenStore, split: str | None = None) -> dict[str, Any]:
    """What the store says of itself, and the lengths of its documents.

    Args:
        store: an open store.
        split: only this one.

    Raises:
        DataError: there is no such split, or a shard is damaged.
    """
    manifest = store.manifest
    names = [split] if split else store.splits
    return {
        "path": store.path,
        "hash": store.hash,
        "format_version": manifest["format_version"],
        "maxlm_version": manifest.get("maxlm_version"),
        "dtype": manifest["dtype"],
        "tokenizer": manifest["tokenizer"],
        "settings": manifest.get("settings", {}),
        "sources": manifest.get("sources", []),
        "skipped": manifest.get("skipped", {}),
        "splits": {name: _describe_split(store.split(name)) for name in names},
    }


def read_window(
    store: TokenStore, split: str, index: int, length: int, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Window `index` of a split cut into windows of `length` tokens, by documents.

    Raises:
        DataError: there is no such window, or its tokens are damaged.
    """
    opened = store.split(split)
    windows = -(-opened.num_tokens // length) if length > 0 else 0
    if not 0 <= index < windows:
        raise DataError(
            f"{store.path}: the split '{split}' has {opened.num_tokens:,} tokens, which make "
            f"{windows:,} windows of {length} tokens: the index {index} is none of 0 to "
            f"{windows - 1}"
        )
    start, stop = index * length, min((index + 1) * length, opened.num_tokens)
    starts = opened.document_starts
    first = int(np.searchsorted(starts, start, "right")) - 1
    documents = []
    while first < opened.num_documents and starts[first] < stop:
        begin, end = max(start, int(starts[first])), min(stop, int(starts[first + 1]))
        ids = opened.read(begin, end)
        documents.append(
            {
                "document": first,
                "first_token": begin - int(starts[first]),
                "document_tokens": int(starts[first + 1] - starts[first]),
                "tokens": ids.tolist(),
                "text": _decode(ids, tokenizer),
            }
        )
        first += 1
    return {"split": split, "index": index, "start": start, "stop": stop, "documents": documents}


def verify_store(store: TokenStore, report: Callable[[str], None] = lambda _: None) -> int:
    """Check every CRC and SHA-256, and the tokenizer; returns the bytes of tokens checked.

    Args:
        store: an open store.
        report: told of every shard that is good.

    Raises:
        DataError: with a line for everything that is damaged.
    """
    damaged: list[str] = []
    checked = 0
    try:
        store.tokenizer()
    except MaxLMError as error:
        damaged.append(str(error))
    itemsize = np.dtype(store.manifest["dtype"]).itemsize
    for name in store.splits:
        for record in store.manifest["splits"][name]["shards"]:
            try:
                _verify_shard(store, name, record)
            except MaxLMError as error:
                damaged.append(str(error))
                continue
            checked += record["tokens"] * itemsize
            report(f"{name}/{record['name']}")
    if damaged:
        raise DataError(
            f"{store.path}: {len(damaged)} part{'s are' if len(damaged) > 1 else ' is'} damaged:\n  "
            + "\n  ".join(damaged)
        )
    return checked


def format_description(found: dict[str, Any]) -> str:
    """The description as people read it."""
    tokenizer = found["tokenizer"]
    lines = [
        f"{found['path']}  (format {found['format_version']}, {found['dtype']}, "
        f"written by maxlm {found['maxlm_version']})",
        f"hash       {found['hash']}",
        f"tokenizer  {tokenizer['kind']}, {tokenizer['vocab_size']:,} ids, "
        f"{tokenizer['hash'][:12]}…",
    ]
    lines += list(_settings_lines(found["settings"]))
    lines += list(_source_lines(found["sources"]))
    if found["skipped"]:
        skipped = ", ".join(f"{count:,} {name}" for name, count in found["skipped"].items())
        lines.append(f"left out   {skipped}")
    for name, split in found["splits"].items():
        lines += ["", *_split_lines(name, split)]
    return "\n".join(lines)


def format_window(window: dict[str, Any]) -> str:
    """A decoded window; every document begins with a line that says which it is."""
    lines = [
        f"split '{window['split']}', window {window['index']}: "
        f"tokens {window['start']:,} to {window['stop'] - 1:,}"
    ]
    for part in window["documents"]:
        last = part["first_token"] + len(part["tokens"]) - 1
        begin = f"── document {part['document']:,}, tokens {part['first_token']:,} to {last:,} "
        lines.append(f"{begin}of {part['document_tokens']:,} ".ljust(80, "─"))
        lines.append(part["text"])
    lines.append("─" * 80)
    return "\n".join(lines)


def _describe_split(split: TokenSplit) -> dict[str, Any]:
    lengths = np.diff(split.document_starts)
    facts: dict[str, Any] = {
        "documents": split.num_documents,
        "tokens": split.num_tokens,
        "bytes": split.num_bytes,
        "bytes_per_token": round(split.num_bytes / max(1, split.num_tokens), 4),
        "shards": len(split.shards),
    }
    if len(lengths):
        facts["lengths"] = {
            "min": int(lengths.min()),
            "median": float(np.median(lengths)),
            "mean": round(float(lengths.mean()), 2),
            "p90": round(float(np.percentile(lengths, 90)), 2),
            "max": int(lengths.max()),
        }
        facts["histogram"] = _histogram(lengths)
    return facts


def _histogram(lengths: np.ndarray) -> list[dict[str, int]]:
    """Documents by length in powers of two, from the first that has any to the last."""
    bins = np.bincount(np.frexp(np.maximum(lengths, 1))[1] - 1)
    first = int(np.flatnonzero(bins)[0])
    return [
        {"from": 1 << power, "to": (2 << power) - 1, "documents": int(bins[power])}
        for power in range(first, len(bins))
    ]


def _verify_shard(store: TokenStore, split: str, record: dict[str, Any]) -> None:
    path = f"{store.path}/{split}/{record['name']}"
    description = {**store.manifest["splits"][split], "shards": [record]}
    one = TokenSplit(f"{store.path}/{split}", description, np.dtype(store.manifest["dtype"]))
    one.verify()
    found = shard_sha256(path)
    if found != record["sha256"]:
        raise DataError(
            f"{path}: SHA-256 {found[:12]}… is not that of the manifest, {record['sha256'][:12]}…"
        )


def _decode(ids: np.ndarray, tokenizer: Tokenizer) -> str:
    """Text of ids, specials by name in ‹›, control characters as pictures."""
    special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id} - {None}
    parts: list[str] = []
    run: list[int] = []
    for token in ids.tolist():
        if token in special:
            parts += [tokenizer.decode(run), f"‹{tokenizer.token_text(token)}›"]
            run = []
        else:
            run.append(token)
    return "".join([*parts, tokenizer.decode(run)]).translate(_PICTURES)


def _settings_lines(settings: dict[str, Any]) -> Iterator[str]:
    if settings:
        shares = ", ".join(f"{name} {share:g}" for name, share in settings["splits"].items())
        yield (
            f"settings   document markers {settings['document_markers']}, splits "
            f"{shares or 'none besides train'}, by {settings['split_by']}"
        )


def _source_lines(sources: list[dict[str, Any]]) -> Iterator[str]:
    total = sum(source["bytes"] for source in sources)
    yield f"sources    {len(sources)} file{'s' if len(sources) != 1 else ''}, {total:,} bytes"
    for source in sources[:20]:
        yield f"           {source['name']}  {source['format']}  {source['bytes']:,} bytes"
    if len(sources) > 20:
        yield f"           … and {len(sources) - 20:,} more (all with --json)"


def _split_lines(name: str, split: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{name}: {split['documents']:,} documents, {split['tokens']:,} tokens, "
        f"{split['bytes']:,} bytes of text ({split['bytes_per_token']:.3f} a token), "
        f"{split['shards']} shard{'s' if split['shards'] != 1 else ''}"
    )
    if "lengths" not in split:
        return
    found = split["lengths"]
    yield (
        f"  tokens in a document: min {found['min']:,}, median {found['median']:,.0f}, "
        f"mean {found['mean']:,.1f}, p90 {found['p90']:,.0f}, max {found['max']:,}"
    )
    most = max(entry["documents"] for entry in split["histogram"])
    width = len(f"{split['histogram'][-1]['to']:,}")
    for entry in split["histogram"]:
        bar = "█" * -(-entry["documents"] * _BAR // most)
        yield (
            f"  {entry['from']:>{width},} to {entry['to']:>{width},}  "
            f"{bar:<{_BAR}}  {entry['documents']:,}"
        )
