"""The command `maxlm`: one thin file per command, found by name, imported only when it is used.

A command is a module `maxlm/cli/NAME.py` with `configure(parser)` (arguments; imports nothing
heavy) and `run(arguments) -> int` (imports what it needs). A user's mistake (`MaxLMError`) prints
its message and exits 2.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys

from maxlm.errors import MaxLMError, did_you_mean

COMMANDS = {
    "train": "Pretrain a model from a config; the same command again resumes it.",
    "plan": "Does a run fit, how long is a step, what does it cost: compiled for hardware not yet rented.",
    "eval": "Loss, perplexity and bits per byte of a run's checkpoint.",
    "generate": "Continue a prompt with a run's checkpoint.",
    "import": "Make a run folder of a Hugging Face or llama2.c model.",
    "export": "Write a run's model as transformers reads it.",
    "launch": "Start a command in several processes that work as one.",
    "report": "Write a run's page: one HTML file with curves, config, data and samples.",
    "checkpoints": "List, show and verify a run's checkpoints.",
    "config": "Show, check and document configs.",
    "tokenizer": "Train a tokenizer; encode, decode and measure with any.",
    "data": "Tokenize text into a token store; look inside one.",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that is not UTF-8 shows `?`
            stream.reconfigure(errors="replace")
    parser = _top_parser()
    if not arguments or arguments[0] in ("-h", "--help"):
        parser.print_help()
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from maxlm import __version__

        print(f"maxlm {__version__}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        print(f"maxlm: no command '{name}'{did_you_mean(name, COMMANDS)}", file=sys.stderr)
        print(f"commands: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    command = importlib.import_module(f"maxlm.cli.{name}")
    command_parser = argparse.ArgumentParser(
        prog=f"maxlm {name}",
        description=COMMANDS[name],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.configure(command_parser)
    parsed = _parse(command_parser, arguments[1:])
    try:
        return command.run(parsed)
    except MaxLMError as error:
        print(f"maxlm {name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"maxlm {name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Parse, letting options stand before, between and after `key=value` arguments."""
    try:
        return parser.parse_intermixed_args(arguments)
    except TypeError:  # a command with subcommands: argparse can't intermix those
        return parser.parse_args(arguments)


def _top_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return argparse.ArgumentParser(
        prog="maxlm",
        usage="maxlm COMMAND [options]",
        description="Pretrain language models in JAX, and use what was trained.",
        epilog=f"commands:\n{listing}\n\n`maxlm COMMAND --help` explains each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _end_with_launcher() -> None:
    """Where `maxlm launch local` started this process, and is killed, it ends too."""
    from maxlm.end_with_parent import end_with_parent
    from maxlm.launch.local import LAUNCHER

    if launcher := os.environ.pop(LAUNCHER, ""):
        end_with_parent(int(launcher))


if __name__ == "__main__":
    _end_with_launcher()
    sys.exit(main())
