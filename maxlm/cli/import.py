"""`maxlm import hf|llama2c PATH --output RUN`: another program's model as a run folder."""

from __future__ import annotations

import argparse

from maxlm.cli.process_arguments import add_process_arguments, process_arguments

EPILOG = """\
examples:
  maxlm import hf ./SmolLM2-135M --output runs/smollm2
  maxlm import hf gs://models/llama3-8b --output runs/llama3-8b --length 8192 parallel.fsdp=8
  maxlm import llama2c stories260K.bin --tokenizer tok512.model --output runs/stories

The family is read from config.json; what it says and maxlm does not compute is refused by its key.
Afterwards: maxlm generate RUN, maxlm eval RUN, train.init_from=RUN, maxlm.load("RUN").
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    parser.add_argument("kind", choices=["hf", "llama2c"], help="a Hugging Face folder, or a .bin")
    parser.add_argument("path", metavar="PATH", help="folder or file, local or gs://")
    parser.add_argument("--output", required=True, metavar="RUN", help="run folder to make")
    parser.add_argument("--tokenizer", metavar="PATH", help="where it does not lie in the folder")
    parser.add_argument(
        "--length", type=int, metavar="N", help="tokens of context (what the model was made for)"
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="KEY",
        help="a key of config.json that changes nothing which the model computes",
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="set an option"
    )
    add_process_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Import."""
    from maxlm.errors import ConfigError
    from maxlm.parallel.processes import joined

    if arguments.kind == "llama2c" and arguments.tokenizer is None:
        raise ConfigError(
            "a llama2.c file holds no tokenizer: name its SentencePiece model or tokenizer.json "
            "with --tokenizer"
        )
    with joined(**process_arguments(arguments)):
        _import(arguments)
    return 0


def _import(arguments: argparse.Namespace) -> None:
    from maxlm.parallel.agreement import process_index
    from maxlm.train.importing import import_huggingface, import_llama2c

    first = process_index() == 0

    def say(text: str) -> None:
        if first:
            print(text, flush=True)

    options = {
        "tokenizer": arguments.tokenizer,
        "length": arguments.length,
        "overrides": arguments.overrides,
        "message": say,
    }
    if arguments.kind == "hf":
        done = import_huggingface(
            arguments.path, arguments.output, ignored=arguments.ignore, **options
        )
    else:
        done = import_llama2c(arguments.path, arguments.output, **options)
    say(f"{done.folder.path}: step 0, for {done.length:,} tokens of context")
