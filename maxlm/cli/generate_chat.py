"""`maxlm generate --chat`: a conversation on the terminal."""

from __future__ import annotations

import argparse
import sys

from maxlm.cli.generate_prompts import Stopwatch, tell
from maxlm.errors import ConfigError
from maxlm.generate.completions import Completions
from maxlm.generate.language_model import LanguageModel
from maxlm.generate.request import Finish
from maxlm.generate.sampling import SamplingOptions
from maxlm.parallel.agreement import process_count


def talk(model: LanguageModel, arguments: argparse.Namespace, options: SamplingOptions) -> None:
    """Read messages and print answers until the input ends.

    Raises:
        ConfigError: the model has no chat template, or there are several processes, of which only one
            has a terminal.
    """
    if process_count() > 1:
        raise ConfigError("--chat works with one process: only one has a terminal")
    model.chat_request(
        [{"role": "user", "content": "?"}], 1, options
    )  # refused before a word is typed
    first = [{"role": "system", "content": arguments.system}] if arguments.system else []
    messages = list(first)
    tell("write a message; an empty line begins anew, Ctrl-D ends")
    while True:
        try:
            said = input("> ")
        except EOFError:
            return
        if not said.strip():
            messages = list(first)
            tell("— anew —")
            continue
        messages.append({"role": "user", "content": said})
        try:
            messages.append(
                {"role": "assistant", "content": _answer(model, messages, arguments, options)}
            )
        except ConfigError as error:  # such as a conversation that has grown beyond the context
            messages.pop()
            tell(str(error))


def _answer(
    model: LanguageModel,
    messages: list[dict[str, str]],
    arguments: argparse.Namespace,
    options: SamplingOptions,
) -> str:
    """Print the answer as it is made. Ctrl-C ends it, not the conversation."""
    completions = Completions(model.engine, model.tokenizer)
    completions.add(0, model.chat_request(messages, arguments.max_tokens, options), arguments.stop)
    watch, answer = Stopwatch(), None
    try:
        for piece in completions.pieces():
            watch.count()
            answer = piece.answer
            sys.stdout.write(piece.text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        completions.cancel(0)
    print(flush=True)
    if answer is None:
        return ""
    if answer.finish is Finish.CONTEXT:
        tell("the context is full: an empty line begins anew")
    tell(str(watch))
    return answer.text
