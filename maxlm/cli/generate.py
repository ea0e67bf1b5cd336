"""`maxlm generate RUN --prompt …`: continue a prompt with a checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from maxlm.cli.process_arguments import add_process_arguments, process_arguments

EPILOG = """\
examples:
  maxlm generate runs/quickstart --prompt 'ROMEO:'
  maxlm generate runs/books@2000 --prompt 'It was' --temperature 0.7 --top-p 0.9 --seed 3
  maxlm generate runs/books --prompt 'Once' --prompt 'Then' --max-tokens 50 --temperature 0

With one prompt the text is printed as it is made; with several, each after the other.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    parser.add_argument("run", metavar="RUN[@STEP]", help="run folder, local or gs://")
    parser.add_argument(
        "--prompt", action="append", required=True, metavar="TEXT", help="text to continue"
    )
    parser.add_argument("--max-tokens", type=int, default=200, help="tokens to add (200)")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0 takes the likeliest token (0.8)"
    )
    parser.add_argument("--top-k", type=int, help="only the k likeliest tokens")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="only the likeliest tokens that sum to p (1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (0)")
    add_process_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Generate."""
    from maxlm.parallel.processes import joined

    with joined(**process_arguments(arguments)):
        _generate(arguments)
    return 0


def _generate(arguments: argparse.Namespace) -> None:
    import sys

    from maxlm.parallel.agreement import process_index

    # On several processes all draw the same, and the first one writes it.
    first = process_index() == 0
    for text in _pieces(arguments):
        if first:
            sys.stdout.write(text)
            sys.stdout.flush()


def _pieces(arguments: argparse.Namespace) -> Iterator[str]:
    """What is printed, piece by piece."""
    import codecs

    import numpy as np

    from maxlm.config.derive_model import longest_length
    from maxlm.generate.generator import Generator
    from maxlm.generate.prompts import encode_prompts, until_end
    from maxlm.generate.sampling import SamplingOptions
    from maxlm.train.loading import load

    options = SamplingOptions(arguments.temperature, arguments.top_k, arguments.top_p)
    trained = load(arguments.run)
    tokenizer = trained.tokenizer
    generator = Generator(trained.model, context_length=longest_length(trained.config.data))
    prompts = encode_prompts(tokenizer, arguments.prompt, trained.config.data)
    stream = generator.stream(
        trained.params,
        prompts,
        max_tokens=arguments.max_tokens,
        options=options,
        seed=arguments.seed,
    )
    if len(prompts) > 1:
        drawn = np.stack(list(stream), axis=1)  # [B, tokens]
        for prompt, tokens in zip(arguments.prompt, drawn, strict=True):
            text = tokenizer.decode(until_end(tokens.tolist(), tokenizer.eos_id))
            yield f"{prompt}{text}\n" + "—" * 8 + "\n"
        return
    # A token may end inside a character: the decoder holds its bytes back until it is whole.
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    yield arguments.prompt[0]
    for (token,) in stream:
        if token == tokenizer.eos_id:
            break
        yield decoder.decode(tokenizer.decode_bytes([int(token)]))
    yield decoder.decode(b"", final=True) + "\n"
