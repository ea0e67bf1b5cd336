"""`maxlm generate --prompt`: texts continued on the terminal."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

from maxlm.generate.beam import BeamOptions
from maxlm.generate.completions import Completion, Completions
from maxlm.generate.language_model import LanguageModel
from maxlm.generate.request import Finish
from maxlm.generate.sampling import SamplingOptions
from maxlm.parallel.agreement import process_index

RULE = "—" * 8 + "\n"


def continue_prompts(
    model: LanguageModel, arguments: argparse.Namespace, options: SamplingOptions
) -> None:
    """Print continuations; of one prompt as they are made."""
    # On several processes all draw the same, and the first one writes it.
    first = process_index() == 0
    ways = _searched if arguments.beams is not None else _pieces
    for text in ways(model, arguments, options):
        if first:
            sys.stdout.write(text)
            sys.stdout.flush()


def speed(tokens: int, seconds: float) -> str:
    """How fast tokens were made, in words."""
    return f"{tokens:,} tokens in {seconds:.2f} s: {tokens / max(seconds, 1e-9):,.1f} tokens/s"


class Stopwatch:
    """Times the first token, before which programs may be compiled, apart from the others."""

    def __init__(self) -> None:
        self._start, self._first, self._tokens = time.perf_counter(), 0.0, 0

    def count(self) -> None:
        """A token has arrived."""
        self._tokens += 1
        self._first = self._first or time.perf_counter()

    def __str__(self) -> str:
        end = time.perf_counter()
        if self._tokens < 2:
            return speed(self._tokens, end - self._start)
        rest = speed(self._tokens - 1, end - self._first)
        return f"first token after {self._first - self._start:.2f} s, then {rest}"


def tell(text: str) -> None:
    """A line on standard error, from the first process."""
    if process_index() == 0:
        print(text, file=sys.stderr, flush=True)


def _pieces(
    model: LanguageModel, arguments: argparse.Namespace, options: SamplingOptions
) -> Iterator[str]:
    prompts = arguments.prompt
    completions = Completions(model.engine, model.tokenizer)
    for index, prompt in enumerate(prompts):
        request = model.request(prompt, arguments.max_tokens, options)
        completions.add(index, request, arguments.stop, slide=arguments.slide)
    watch, answers = Stopwatch(), {}
    if len(prompts) == 1:
        yield prompts[0]
    for piece in completions.pieces():
        watch.count()
        answers[piece.index] = piece.answer
        if len(prompts) == 1:
            yield piece.text
    told = str(watch)
    if len(prompts) == 1:
        yield "\n"
    else:
        for index, prompt in enumerate(prompts):
            yield f"{prompt}{answers[index].text}\n{RULE}"
    if options.logprobs is not None:
        for index in range(len(prompts)):
            yield from _table(model, answers[index])
    if any(answer.finish is Finish.CONTEXT for answer in answers.values()):
        tell(
            f"the context of {model.context_length:,} tokens was full: the answer ends there "
            "(--slide goes on from its newer half)"
        )
    tell(told)


def _searched(
    model: LanguageModel, arguments: argparse.Namespace, options: SamplingOptions
) -> Iterator[str]:
    how = BeamOptions(arguments.beams, arguments.length_penalty)
    most, stop = arguments.max_tokens, arguments.stop
    asked = [(model.request(prompt, most, options), stop) for prompt in arguments.prompt]
    for prompt, found in zip(arguments.prompt, model.search(asked, how), strict=True):
        for hypothesis in found:
            yield f"{hypothesis.score:9.4f}  {prompt}{hypothesis.text}\n"


def _table(model: LanguageModel, answer: Completion) -> Iterator[str]:
    """Log-probabilities, a line a token."""
    write = model.tokenizer.token_text
    rows = zip(answer.tokens, answer.logprobs, answer.alternatives, strict=True)
    for token, logprob, alternatives in rows:
        others = "  ".join(f"{write(other)!r} {value:.3f}" for other, value in alternatives)
        yield f"{logprob:9.4f}  {write(token)!r:16}  {others}".rstrip() + "\n"
