"""`maxlm data tokenize|inspect`: text into a token store; what is in one."""

from __future__ import annotations

import argparse
import json
import sys
import time

EPILOG = """\
examples:
  maxlm data tokenize --source sample:tinyshakespeare --tokenizer byte \\
      --splits validation=0.1 --split-by position --output stores/shakespeare
  maxlm data tokenize --source 'books/*.jsonl.gz' --tokenizer tokenizers/books \\
      --splits validation=0.01 --output stores/books
  maxlm data inspect stores/books --split validation --window 200

`maxlm data ACTION --help` explains each.
"""
TOKENIZE_EPILOG = """\
sources:
  notes.txt, notes.md        a file is one document (or see --document-separator)
  corpus.jsonl               a JSON object per line, its text in the field `text`
  *.txt.gz, *.jsonl.zst      the same, compressed
  table.parquet              its text in the column `text`
  folder/                    all of these below it; or what Hugging Face's save_to_disk wrote
  'books/*.jsonl.gz'         a glob, quoted
  tfds:NAME_OR_FOLDER:SPLIT  a TFDS builder that was prepared as array_record
  sample:tinyshakespeare     1.1 MB of plays that come with maxlm

Run the same command again after a kill or an error: finished shards are kept. The store is the same,
byte for byte, whatever the number of workers. Splits share no text: documents are assigned by a
hash of their text.

examples:
  maxlm data tokenize --source sample:tinyshakespeare --tokenizer byte \\
      --splits validation=0.1 --split-by position --output stores/shakespeare
  maxlm data tokenize --source wiki/ 'books/*.jsonl.gz' --tokenizer tokenizers/mine \\
      --splits validation=0.005 test=0.005 --output gs://bucket/stores/mine
  maxlm data tokenize --source stories.txt --document-separator '<|endoftext|>' \\
      --tokenizer byte --output stores/stories
"""
INSPECT_EPILOG = """\
examples:
  maxlm data inspect stores/books
  maxlm data inspect stores/books --split validation --window 200 --index 3
  maxlm data inspect stores/books --verify
  maxlm data inspect stores/books --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", required=True, metavar="tokenize|inspect")
    _configure_tokenize(actions)
    _configure_inspect(actions)


def run(arguments: argparse.Namespace) -> int:
    """Run the chosen action; returns the exit code."""
    return {"tokenize": _tokenize, "inspect": _inspect}[arguments.action](arguments)


def _configure_tokenize(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "tokenize",
        help="text sources into a token store; again to continue",
        epilog=TOKENIZE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--source", nargs="+", action="extend", required=True, metavar="SOURCE", help="see below")
    add(
        "--tokenizer",
        required=True,
        metavar="TOKENIZER",
        help="byte, a .model file, a tokenizer.json, a folder with one, a run or a store",
    )
    add("--output", required=True, metavar="STORE", help="the store's folder, local or remote")
    add(
        "--splits",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=SHARE",
        help="splits besides train, which gets the rest; for example validation=0.01",
    )
    add(
        "--split-by",
        default="hash",
        choices=["hash", "position"],
        help="hash (default): whole documents, by their text; position: cut a single text, its "
        "first part is train's, its last goes to the others in order",
    )
    add(
        "--document-markers",
        default="both",
        choices=["both", "bos", "eos", "none"],
        help="special tokens around a document, those that the tokenizer has (default: both)",
    )
    add(
        "--dtype",
        choices=["uint16", "uint32"],
        help="of ids (default: uint16 if the vocabulary has at most 65,536)",
    )
    add("--text-field", default="text", metavar="NAME", help="field or column (default: text)")
    add(
        "--document-separator",
        metavar="TEXT",
        help=r"what stands between the documents of a text file; \n is a line end, \t a tab",
    )
    add(
        "--max-document-bytes",
        default="256MiB",
        metavar="SIZE",
        help="a larger document is an error (default: 256MiB)",
    )
    add(
        "--on-error",
        default="fail",
        choices=["fail", "skip"],
        help="bad input: fail (default) names file and line; skip leaves it out and counts it",
    )
    add(
        "--shard-bytes",
        metavar="SIZE",
        help="text in one shard, about (default: by the sources' size, 8 to 256 MiB)",
    )
    add("--workers", type=int, metavar="N", help="processes (default: one per core)")


def _configure_inspect(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "inspect",
        help="what is in a token store, and whether it is whole",
        epilog=INSPECT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("store", metavar="STORE", help="the store's folder, local or remote")
    add("--split", metavar="NAME", help="only this split (of --window: default train)")
    add("--window", type=int, metavar="LENGTH", help="show a window of so many tokens, decoded")
    add("--index", type=int, default=0, metavar="I", help="which window (default: 0, the first)")
    add("--json", action="store_true", help="one JSON object")
    add("--verify", action="store_true", help="check every CRC32C and SHA-256")


def _tokenize(arguments: argparse.Namespace) -> int:
    from maxlm.data.document import OnError
    from maxlm.data.sources.source_file import ReadOptions
    from maxlm.data.tokenize.progress import ProgressDisplay
    from maxlm.data.tokenize.run import tokenize
    from maxlm.data.tokenize.settings import Markers, SplitBy, StoreSettings
    from maxlm.errors import ConfigError

    if arguments.workers is not None and arguments.workers < 1:
        raise ConfigError(f"--workers {arguments.workers}: must be at least 1")
    shard_bytes = arguments.shard_bytes
    settings = StoreSettings(
        splits=_splits(arguments.splits),
        split_by=SplitBy(arguments.split_by),
        document_markers=Markers(arguments.document_markers),
        dtype=arguments.dtype,
        shard_bytes=None if shard_bytes is None else _size("--shard-bytes", shard_bytes),
        read=ReadOptions(
            text_field=arguments.text_field,
            document_separator=_unescape(arguments.document_separator),
            max_document_bytes=_size("--max-document-bytes", arguments.max_document_bytes),
        ),
    )
    started = time.monotonic()
    try:
        with ProgressDisplay() as display:
            result = tokenize(
                arguments.source,
                tokenizer=arguments.tokenizer,
                output=arguments.output,
                settings=settings,
                on_error=OnError(arguments.on_error),
                workers=arguments.workers,
                progress=display,
            )
    except KeyboardInterrupt:
        print("stopped; the same command continues where this one was", file=sys.stderr)
        return 130
    manifest = result.store.manifest
    if result.already_complete:
        print(f"{arguments.output} is complete; nothing to do")
    for name, split in manifest["splits"].items():
        print(
            f"{name}: {split['documents']:,} documents, {split['tokens']:,} tokens, "
            f"{split['bytes']:,} bytes of text"
        )
        if not split["documents"]:
            print(
                f"  {name} is empty: no document fell to it; one text is cut by --split-by position"
            )
    if manifest["skipped"]:
        counts = ", ".join(f"{count:,} {name}" for name, count in manifest["skipped"].items())
        print(f"left out: {counts}")
    if not result.already_complete:
        print(f"written to {arguments.output} in {time.monotonic() - started:.1f} s")
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from maxlm.data import inspect
    from maxlm.data.store import TokenStore

    store = TokenStore(arguments.store)
    if arguments.verify:
        show = None if arguments.json else lambda shard: print(f"good: {shard}", file=sys.stderr)
        checked = inspect.verify_store(store, *([show] if show else []))
        print(
            json.dumps({"path": store.path, "hash": store.hash, "verified_bytes": checked})
            if arguments.json
            else f"{store.path}: whole; {checked:,} bytes of tokens checked"
        )
    elif arguments.window is not None:
        split = arguments.split or "train"
        window = inspect.read_window(
            store, split, arguments.index, arguments.window, store.tokenizer()
        )
        print(json.dumps(window) if arguments.json else inspect.format_window(window))
    else:
        found = inspect.describe_store(store, arguments.split)
        print(json.dumps(found) if arguments.json else inspect.format_description(found))
    return 0


def _splits(words: list[str]) -> dict[str, float]:
    from maxlm.errors import ConfigError

    splits: dict[str, float] = {}
    for word in ",".join(words).split(",") if words else []:
        name, equals, share = word.partition("=")
        try:
            splits[name] = float(share)
        except ValueError as error:
            example = "for example --splits validation=0.01"
            what = f"'{share}' is no number" if equals else "a split is NAME=SHARE"
            raise ConfigError(f"--splits {word}: {what}; {example}") from error
    return splits


def _size(option: str, text: str) -> int:
    from maxlm.errors import ConfigError

    number = text.strip().lower().removesuffix("b").removesuffix("i")
    unit = {"k": 10, "m": 20, "g": 30}.get(number[-1:], 0)
    try:
        return int(float(number[:-1] if unit else number) * (1 << unit))
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{option} {text}: a size is bytes, or 64KiB, 256MiB, 1GiB") from error


def _unescape(text: str | None) -> str | None:
    if text is None:
        return None
    return text.replace("\\n", "\n").replace("\\t", "\t").replace("\\r", "\r")
