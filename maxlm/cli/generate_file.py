"""`maxlm generate --input FILE --output FILE`: many prompts, answered as JSON lines in their order."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from maxlm import storage
from maxlm.cli.generate_prompts import speed, tell
from maxlm.errors import ConfigError, did_you_mean
from maxlm.generate.beam import BeamOptions, Hypothesis
from maxlm.generate.beam_text import Asked
from maxlm.generate.completions import Completion, Completions
from maxlm.generate.language_model import LanguageModel
from maxlm.generate.request import Request
from maxlm.generate.sampling import SamplingOptions
from maxlm.generate.text import check_stop
from maxlm.parallel.agreement import process_index

SAMPLING = tuple(field.name for field in fields(SamplingOptions))
KEYS = ("prompt", "messages", "max_tokens", "stop", *SAMPLING)
TOLD_EVERY = 2.0  # seconds


def answer_file(
    model: LanguageModel, arguments: argparse.Namespace, options: SamplingOptions
) -> None:
    """Answer every prompt of a file.

    Raises:
        ConfigError: a line cannot be answered, named by its number; or the output exists. Nothing is
            written then.
    """
    if storage.exists(arguments.output):
        raise ConfigError(f"{arguments.output}: there is such a file already: name another one")
    asked = [
        (
            line,
            record,
            *_request(model, record, arguments, options, f"{arguments.input}, line {line}"),
        )
        for line, record in _records(arguments.input)
    ]
    requests: list[Asked] = [(request, stop) for _, _, request, stop in asked]
    start = time.perf_counter()
    progress = _Progress(len(asked))
    if arguments.beams is None:
        answers = _drawn(model, requests, progress, slide=arguments.slide)
    else:
        how = BeamOptions(arguments.beams, arguments.length_penalty)
        answers = _searched(model, requests, progress, how)
    if process_index() == 0:
        lines = [
            json.dumps({**record, **answer}, ensure_ascii=False) + "\n"
            for (_, record, *_), answer in zip(asked, answers, strict=True)
        ]
        storage.write_text(arguments.output, "".join(lines))
    made = sum(answer["num_tokens"] for answer in answers)
    seconds = time.perf_counter() - start
    tell(f"{arguments.output}: {len(asked):,} answers, {speed(made, seconds)}")


class _Progress:
    """Tells now and then how far it is."""

    def __init__(self, total: int):
        self._total = total
        self._start = self._told = time.perf_counter()

    def tell(self, done: int, tokens: int) -> None:
        """So many answers and tokens are made."""
        now = time.perf_counter()
        if now - self._told < TOLD_EVERY:
            return
        self._told = now
        left = (now - self._start) * (self._total - done) / max(done, 1)
        rest = f", about {left:.0f} s left" if done else ""
        tell(f"{done:,} of {self._total:,} answers, {speed(tokens, now - self._start)}{rest}")


def _drawn(
    model: LanguageModel, asked: list[Asked], progress: _Progress, *, slide: bool
) -> list[dict[str, Any]]:
    """What is told of each answer."""
    completions = Completions(model.engine, model.tokenizer)
    for index, (request, stop) in enumerate(asked):
        completions.add(index, request, stop, slide=slide)
    answers: dict[int, Completion] = {}
    tokens = 0
    while completions.waiting:
        for piece in completions.step():
            answers[piece.index] = piece.answer
            tokens += 1
        progress.tell(len(asked) - completions.waiting, tokens)
    return [_told(answers[index]) for index in range(len(asked))]


def _searched(
    model: LanguageModel, asked: list[Asked], progress: _Progress, how: BeamOptions
) -> list[dict[str, Any]]:
    """What is told of the best hypothesis of each, and of all."""
    told: list[dict[str, Any]] = []
    tokens = 0
    for found in model.search(asked, how):
        told.append(_found(found))
        tokens += told[-1]["num_tokens"]
        progress.tell(len(told), tokens)
    return told


def _records(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and what they ask."""
    if not storage.exists(path):
        raise ConfigError(f"{path}: there is no such file")
    plain = not path.endswith((".jsonl", ".json"))
    for number, line in enumerate(storage.read_text(path).splitlines(), start=1):
        if plain:
            yield number, {"prompt": line}
            continue
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise ConfigError(f"{path}, line {number}: not an object with a prompt: {line[:80]}")
        yield number, record


def _request(
    model: LanguageModel,
    record: dict[str, Any],
    arguments: argparse.Namespace,
    options: SamplingOptions,
    where: str,
) -> tuple[Request, list[str]]:
    """A record as a request, and its stop strings."""
    unknown = sorted(set(record) - set(KEYS))
    if unknown:
        near = did_you_mean(unknown[0], KEYS)
        raise ConfigError(f"{where}: no key '{unknown[0]}'{near}; there are {', '.join(KEYS)}")
    if ("prompt" in record) == ("messages" in record):
        raise ConfigError(f"{where}: give either a prompt or messages")
    stop = record.get("stop", arguments.stop)
    stop = [stop] if isinstance(stop, str) else stop
    most = record.get("max_tokens", arguments.max_tokens)
    own = {name: record[name] for name in SAMPLING if name in record}
    if own and arguments.beams is not None:
        raise ConfigError(f"{where}: beam search draws nothing: leave out '{next(iter(own))}'")
    if "logit_bias" in own:  # JSON's keys are strings
        own["logit_bias"] = {int(token): bias for token, bias in own["logit_bias"].items()}
    try:
        check_stop(stop)
        chosen = replace(options, **own)
        if "messages" in record:
            request = model.chat_request(record["messages"], most, chosen)
        else:
            request = model.request(record["prompt"], most, chosen)
        request.check(model.context_length, model.engine.programs.vocab_size)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where}: a value is of the wrong kind: {error}") from error
    return request, stop


def _found(hypotheses: list[Hypothesis]) -> dict[str, Any]:
    best = hypotheses[0]
    return {
        "text": best.text,
        "finish_reason": best.finish.value,
        "num_tokens": len(best.tokens),
        "hypotheses": [{"text": h.text, "score": h.score} for h in hypotheses],
    }


def _told(answer: Completion) -> dict[str, Any]:
    assert answer.finish is not None
    told: dict[str, Any] = {
        "text": answer.text,
        "finish_reason": answer.finish.value,
        "num_tokens": len(answer.tokens),
    }
    if answer.logprobs:
        told["tokens"], told["logprobs"] = answer.tokens, answer.logprobs
        told["alternatives"] = answer.alternatives
    return told
