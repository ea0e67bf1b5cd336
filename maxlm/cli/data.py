"""`maxlm data tokenize|inspect`: text into a token store; what is in one."""

from __future__ import annotations

import argparse

EPILOG = """\
examples:
  maxlm data tokenize --source sample:tinyshakespeare --tokenizer byte \\
      --splits validation=0.1 --split-by position --output stores/shakespeare
  maxlm data tokenize --source 'books/*.jsonl.gz' --tokenizer tokenizers/books \\
      --splits validation=0.01 --output stores/books
  maxlm data inspect stores/books

`maxlm data ACTION --help` explains each.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", required=True, metavar="tokenize|inspect")
    _configure_tokenize(actions)


def run(arguments: argparse.Namespace) -> int:
    """Run the chosen action; returns the exit code."""
    return {"tokenize": _tokenize}[arguments.action](arguments)


def _configure_tokenize(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "tokenize",
        help="text sources into a token store; again to continue",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--source", action="append", required=True, metavar="SOURCE", help="repeat for several")
    add("--tokenizer", required=True, metavar="TOKENIZER", help="byte, a file or a folder")
    add("--output", required=True, metavar="STORE", help="folder of the store")
    add("--splits", nargs="+", default=[], metavar="NAME=SHARE", help="besides train")
    add("--split-by", default="hash", choices=["hash", "position"], help="hash or position")
    add("--workers", type=int, metavar="N", help="processes (default: one per core)")


def _tokenize(arguments: argparse.Namespace) -> int:
    from maxlm.data.tokenize.run import tokenize
    from maxlm.data.tokenize.settings import SplitBy, StoreSettings

    splits = {name: float(share) for name, share in (s.split("=") for s in arguments.splits)}
    result = tokenize(
        arguments.source,
        tokenizer=arguments.tokenizer,
        output=arguments.output,
        settings=StoreSettings(splits=splits, split_by=SplitBy(arguments.split_by)),
        workers=arguments.workers,
    )
    if result.already_complete:
        print(f"{arguments.output} is complete; nothing to do")
    for name, split in result.store.manifest["splits"].items():
        print(f"{name}: {split['documents']:,} documents, {split['tokens']:,} tokens")
    return 0
