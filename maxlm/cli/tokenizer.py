"""`maxlm tokenizer train|encode|decode|stats`: make a tokenizer; use and measure any."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maxlm.data.document import Problems
    from maxlm.data.tokenizers import Tokenizer
    from maxlm.data.tokenizers.statistics import GroupCounts, Statistics

TOKENIZER_HELP = (
    "byte, a .model file, a tokenizer.json, a folder with one, a GPT-2 folder, a run or a store"
)
INPUT_HELP = "files, folders or quoted globs: .txt, .jsonl, .parquet, .zip of texts, also .gz, .zst"
EPILOG = """\
examples:
  maxlm tokenizer train --input 'books/*.jsonl.gz' --kind bpe --vocab-size 8192 --output tokenizers/books
  maxlm tokenizer stats tokenizers/books books/a.txt udhr.zip
  maxlm tokenizer encode tokenizers/books 'Any text.' --pieces
  maxlm tokenizer encode byte < text.txt | maxlm tokenizer decode byte

`maxlm tokenizer ACTION --help` explains each.
"""
TRAIN_EPILOG = """\
The tokenizer gives back any text exactly: nothing is normalised, spaces stay, characters without a
piece become bytes. Ids: 0 <unk> (never used), 1 <s> begins a document, 2 </s> ends it, then
newline, two newlines, tab and the 256 bytes (262 ids in all), then what is learned.
The same text gives the same tokenizer.

examples:
  maxlm tokenizer train --input corpus/ --vocab-size 32000 --output tokenizers/mine
  maxlm tokenizer train --input a.txt 'b/*.jsonl.gz' --kind unigram --vocab-size 8000 --output t
"""
STATS_EPILOG = """\
Columns: bytes per token (more is shorter sequences), unknown tokens, tokens of one byte that is no
ASCII character (what rare characters fall back to), different ids used, and texts that decoding
does not give back.

examples:
  maxlm tokenizer stats tokenizers/mine books/*.txt
  maxlm tokenizer stats byte corpus.jsonl.gz --by language
  maxlm tokenizer stats path/to/gpt2 udhr.zip --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    text = argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="train|encode|decode|stats"
    )
    train = actions.add_parser(
        "train",
        help="learn a SentencePiece vocabulary from text",
        epilog=TRAIN_EPILOG,
        formatter_class=text,
    )
    train.add_argument("--input", nargs="+", required=True, metavar="PATH", help=INPUT_HELP)
    train.add_argument("--kind", default="bpe", help="bpe (default) or unigram")
    train.add_argument(
        "--vocab-size", type=int, required=True, metavar="N", help="ids in all, 262 fixed included"
    )
    train.add_argument("--output", required=True, metavar="FOLDER", help="local or gs://")
    train.add_argument(
        "--text-field", default="text", metavar="NAME", help="where records have it (default: text)"
    )
    train.add_argument(
        "--character-coverage",
        type=float,
        default=0.9995,
        metavar="SHARE",
        help="share of all characters that get a piece, the rest become bytes (default: 0.9995)",
    )
    train.add_argument(
        "--max-bytes",
        type=float,
        default=200e6,
        metavar="N",
        help="learn from at most so much text, lines spread evenly over it (default: 200e6)",
    )
    train.add_argument(
        "--on-error",
        choices=["fail", "skip"],
        default="fail",
        help="input that cannot be read: stop (default), or leave it out and count it",
    )
    train.add_argument(
        "--overwrite", action="store_true", help="replace what is in the output folder"
    )
    encode = actions.add_parser("encode", help="text to ids", formatter_class=text)
    encode.add_argument("tokenizer", metavar="TOKENIZER", help=TOKENIZER_HELP)
    encode.add_argument("text", nargs="?", metavar="TEXT", help="default: standard input")
    encode.add_argument(
        "--pieces", action="store_true", help="a line per token: id, bytes, the token"
    )
    decode = actions.add_parser("decode", help="ids to text", formatter_class=text)
    decode.add_argument("tokenizer", metavar="TOKENIZER", help=TOKENIZER_HELP)
    decode.add_argument("ids", nargs="*", metavar="ID", help="default: standard input")
    stats = actions.add_parser(
        "stats",
        help="bytes per token, unknowns, use of the vocabulary",
        epilog=STATS_EPILOG,
        formatter_class=text,
    )
    stats.add_argument("tokenizer", metavar="TOKENIZER", help=TOKENIZER_HELP)
    stats.add_argument("input", nargs="+", metavar="PATH", help=INPUT_HELP)
    stats.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    stats.add_argument(
        "--by", metavar="FIELD", help="group JSONL by this field (a language) instead of by file"
    )
    stats.add_argument(
        "--text-field", default="text", metavar="NAME", help="where records have it (default: text)"
    )

    stats.add_argument(
        "--on-error",
        choices=["fail", "skip"],
        default="fail",
        help="input that cannot be read: stop (default), or leave it out and count it",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the chosen action; returns the exit code."""
    actions = {"train": _train, "encode": _encode, "decode": _decode, "stats": _stats}
    return actions[arguments.action](arguments)


def _train(arguments: argparse.Namespace) -> int:
    from maxlm import storage
    from maxlm.data.document import OnError, Problems
    from maxlm.data.sources.finding import find_files
    from maxlm.data.tokenizers import train_sentencepiece
    from maxlm.data.tokenizers.corpus import read_texts
    from maxlm.errors import TokenizerError

    if storage.list_names(arguments.output) and not arguments.overwrite:
        raise TokenizerError(
            f"{arguments.output}: is not empty; name another folder, or replace its tokenizer "
            "with --overwrite (stores and runs written with it keep their own copy)"
        )
    files = find_files(arguments.input)
    print(f"reading {len(files)} file{'s' if len(files) != 1 else ''} and training …", flush=True)
    started = time.monotonic()
    problems = Problems(OnError(arguments.on_error))
    tokenizer = train_sentencepiece(
        (record.text for record in read_texts(files, problems, arguments.text_field)),
        vocab_size=arguments.vocab_size,
        kind=arguments.kind,
        character_coverage=arguments.character_coverage,
        max_bytes=int(arguments.max_bytes),
    )
    tokenizer.save(arguments.output)
    print(f"trained in {time.monotonic() - started:.1f} s: {_describe(tokenizer)}")
    print(f"written to {arguments.output}")
    _print_skipped(problems)
    return 0


def _encode(arguments: argparse.Namespace) -> int:
    from maxlm.data.tokenizers import load_tokenizer
    from maxlm.errors import DataError

    tokenizer = load_tokenizer(arguments.tokenizer)
    text = arguments.text
    if text is None:
        try:
            text = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"standard input: not UTF-8 text (byte {error.start})") from error
    ids = tokenizer.encode(text)
    if not arguments.pieces:
        print(" ".join(map(str, ids)))
        return 0
    lengths = tokenizer.token_bytes()
    for token_id in ids:
        piece = json.dumps(tokenizer.token_text(token_id), ensure_ascii=False)
        print(f"{token_id:>8}  {lengths[token_id]:>3}  {piece}")
    return 0


def _decode(arguments: argparse.Namespace) -> int:
    from maxlm.data.tokenizers import load_tokenizer
    from maxlm.errors import TokenizerError

    tokenizer = load_tokenizer(arguments.tokenizer)
    words = arguments.ids or sys.stdin.read().split()
    ids = []
    for position, word in enumerate(words):
        try:
            ids.append(int(word.strip(",[]")))
        except ValueError as error:
            raise TokenizerError(f"'{word}' at position {position} is no id") from error
    sys.stdout.write(tokenizer.decode(ids))
    if sys.stdout.isatty():
        print()
    return 0


def _stats(arguments: argparse.Namespace) -> int:
    from maxlm.data.document import OnError, Problems
    from maxlm.data.sources.finding import find_files
    from maxlm.data.tokenizers import load_tokenizer
    from maxlm.data.tokenizers.corpus import read_texts
    from maxlm.data.tokenizers.statistics import measure

    tokenizer = load_tokenizer(arguments.tokenizer)
    problems = Problems(OnError(arguments.on_error))
    files = find_files(arguments.input)
    records = read_texts(files, problems, arguments.text_field, arguments.by)
    found = measure(tokenizer, ((record.group, record.text) for record in records))
    if arguments.json:
        print(json.dumps({"hash": tokenizer.hash, "kind": tokenizer.kind, **found.to_json()}))
    else:
        print(_describe(tokenizer))
        print(_table(found))
    _print_skipped(problems)
    return 0


def _print_skipped(problems: Problems) -> None:
    for reason, count in problems.skipped.items():
        print(f"left out: {count} of {reason}", file=sys.stderr)


def _describe(tokenizer: Tokenizer) -> str:
    exact = "any text comes back" if tokenizer.exact else "changes some texts"
    return f"{tokenizer.kind}, {tokenizer.vocab_size:,} ids, {exact}, hash {tokenizer.hash[:16]}"


def _table(found: Statistics) -> str:
    rows: list[tuple[str, ...]] = [
        ("bytes/token", "bytes", "tokens", "unknown", "fallback", "ids used", "not restored", "of")
    ]
    rows += [_row(group, group.group) for group in found.groups]
    if len(found.groups) != 1:
        rows.append(_row(found.total, "total"))
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    lines = ["  ".join([*map(str.rjust, row[:-1], widths), row[-1]]) for row in rows]
    used = found.total.ids_used
    lines.append(
        f"{used:,} of {found.vocab_size:,} ids used ({used / found.vocab_size:.1%} of the vocabulary)"
    )
    return "\n".join(lines)


def _row(counts: GroupCounts, name: str) -> tuple[str, ...]:
    numbers = (
        counts.bytes,
        counts.tokens,
        counts.unknowns,
        counts.single_byte_tokens,
        counts.ids_used,
    )
    return (
        f"{counts.bytes_per_token:.3f}",
        *(f"{number:,}" for number in numbers),
        f"{counts.not_restored} of {counts.texts}",
        name.rsplit("/", 1)[-1],
    )
