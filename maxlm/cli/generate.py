"""`maxlm generate MODEL`: continue prompts, answer a file of them, or chat."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from maxlm.cli.process_arguments import add_process_arguments, process_arguments
from maxlm.cli.sampling_arguments import add_sampling_arguments, sampling_options
from maxlm.errors import ConfigError

if TYPE_CHECKING:
    from maxlm.generate.language_model import LanguageModel
    from maxlm.generate.sampling import SamplingOptions

MAX_TOKENS = 200

EPILOG = """\
examples:
  maxlm generate runs/quickstart --prompt 'ROMEO:'
  maxlm generate runs/books@2000 --prompt 'It was' --temperature 0.7 --top-p 0.9 --seed 3
  maxlm generate runs/books --prompt 'Once' --prompt 'Then' --max-tokens 50 --temperature 0
  maxlm generate runs/books --input prompts.jsonl --output answers.jsonl --rows 64
  maxlm generate exported/qwen --chat
  maxlm generate runs/translate --prompt 'Hello = ' --stop '\\n' --beams 4

MODEL is a run, local or gs://, or a Hugging Face folder. With one prompt the text is printed as it is made.
A file has a prompt per line (.txt), or JSON (.jsonl): {"prompt": …} or {"messages": […]}, and with them,
where they differ from the arguments, "max_tokens", "stop", "seed" and what else chooses tokens. Speed is
told on standard error. With --beams an answer is the likeliest whole text that was found; a file gets all.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    parser.add_argument("model", metavar="MODEL", help="RUN, RUN@STEP or a Hugging Face folder")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="text to continue")
    parser.add_argument("--input", metavar="FILE", help="prompts: .txt, one a line, or .jsonl")
    parser.add_argument("--output", metavar="FILE", help="answers to --input, as .jsonl")
    parser.add_argument("--chat", action="store_true", help="talk, with the model's chat template")
    parser.add_argument(
        "--system", metavar="TEXT", help="what a chat begins with, in the system's name"
    )
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help=f"most tokens of an answer ({MAX_TOKENS})"
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="string that ends an answer; as often as you like",
    )
    parser.add_argument(
        "--slide",
        action="store_true",
        help="when the context is full, go on from its newer half instead of ending",
    )
    parser.add_argument(
        "--rows", type=int, metavar="N", help="prompts that are answered at once (16)"
    )
    parser.add_argument("--beams", type=int, metavar="K", help="beam search with K hypotheses")
    parser.add_argument(
        "--length-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="of beam search: above 0 favours longer answers (1)",
    )
    parser.add_argument(
        "--quantization",
        metavar="KIND",
        help="8-bit weights: int8 or fp8; activations too: int8_matmul or fp8_matmul",
    )
    add_sampling_arguments(parser)
    add_process_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Generate."""
    from maxlm.parallel.processes import joined

    _check(arguments)
    options = sampling_options(arguments)
    work = _work(arguments)
    with joined(**process_arguments(arguments)):
        work(_load(arguments), arguments, options)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what makes no sense before a model is loaded."""
    from maxlm.generate.text import check_stop

    ways = {
        "--prompt": arguments.prompt,
        "--input": arguments.input,
        "--chat": arguments.chat,
    }
    given = [name for name, value in ways.items() if value]
    if len(given) != 1:
        said = " and ".join(given) or "neither"
        raise ConfigError(f"{said} given: choose one of --prompt, --input and --chat")
    if (arguments.output is None) != (arguments.input is None):
        raise ConfigError("--input and --output belong together: answers to a file go into a file")
    if arguments.beams is not None:
        no = {
            "--chat": arguments.chat,
            "--slide": arguments.slide,
            "--logprobs": arguments.logprobs is not None,
        }
        for name in (name for name, given in no.items() if given):
            raise ConfigError(f"--beams and {name} given: beam search works without it")
    if arguments.rows is not None and arguments.rows < 1:
        raise ConfigError(f"--rows {arguments.rows}: answer at least 1 at once")
    if arguments.max_tokens is not None and arguments.max_tokens < 1:
        raise ConfigError(f"--max-tokens {arguments.max_tokens}: ask for at least 1")
    check_stop(arguments.stop)


def _work(
    arguments: argparse.Namespace,
) -> Callable[[LanguageModel, argparse.Namespace, SamplingOptions], None]:
    """What is to be done; its module is imported here."""
    if arguments.chat:
        from maxlm.cli.generate_chat import talk

        return talk
    if arguments.input:
        from maxlm.cli.generate_file import answer_file

        return answer_file
    from maxlm.cli.generate_prompts import continue_prompts

    arguments.max_tokens = arguments.max_tokens or MAX_TOKENS
    return continue_prompts


def _load(arguments: argparse.Namespace) -> LanguageModel:
    from maxlm.generate.engine import MAX_ROWS
    from maxlm.generate.language_model import load

    rows = arguments.rows or MAX_ROWS
    return load(arguments.model, quantization=arguments.quantization, max_rows=rows)
