"""`maxlm export hf RUN --output FOLDER`: a run's model as transformers reads it."""

from __future__ import annotations

import argparse

EPILOG = """\
examples:
  maxlm export hf runs/books --output exported/books --licence apache-2.0
  maxlm export hf runs/books@2000 --output exported/books-2000 --dtype bfloat16

Then: transformers.pipeline("text-generation", model="exported/books").
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    parser.add_argument("kind", choices=["hf"], help="a Hugging Face folder")
    parser.add_argument("run", metavar="RUN[@STEP]", help="run folder, local or gs://")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder to make")
    parser.add_argument(
        "--family", metavar="NAME", help="architecture to write (the first that fits the model)"
    )
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights"
    )
    parser.add_argument(
        "--shard-bytes", type=int, default=5_000_000_000, metavar="N", help="size of a file (5e9)"
    )
    parser.add_argument("--licence", metavar="ID", help="SPDX identifier, for the model card")
    parser.add_argument("--no-tokenizer", action="store_true", help="leave the tokenizer out")


def run(arguments: argparse.Namespace) -> int:
    """Export."""
    from maxlm.train.exporting import export_huggingface

    done = export_huggingface(
        arguments.run,
        arguments.output,
        family=arguments.family,
        dtype=arguments.dtype,
        shard_bytes=arguments.shard_bytes,
        licence=arguments.licence,
        with_tokenizer=not arguments.no_tokenizer,
        message=lambda text: print(text, flush=True),
    )
    print(f"{done.folder}: {', '.join(sorted(done.files))}")
    return 0
