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
    completions = Completions(model.engine, model.tokenizer)
    for index, (_, _, request, stop) in enumerate(asked):
        completions.add(index, request, stop, slide=arguments.slide)
    answers: dict[int, Completion] = {}
    start = told = time.perf_counter()
    tokens = 0
    while completions.waiting:
        for piece in completions.step():
            answers[piece.index] = piece.answer
            tokens += 1
        now = time.perf_counter()
        if now - told >= TOLD_EVERY:
            told, done = now, len(asked) - completions.waiting
            left = (now - start) * completions.waiting / max(done, 1)
            rest = f", about {left:.0f} s left" if done else ""
            tell(f"{done:,} of {len(asked):,} answers, {speed(tokens, now - start)}{rest}")
    seconds = time.perf_counter() - start
    if process_index() == 0:
        lines = [_line(record, answers[i]) for i, (_, record, *_) in enumerate(asked)]
        storage.write_text(arguments.output, "".join(lines))
    made = sum(len(answer.tokens) for answer in answers.values())
    tell(f"{arguments.output}: {len(asked):,} answers, {speed(made, seconds)}")


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


def _line(record: dict[str, Any], answer: Completion) -> str:
    """What was asked, and the answer."""
    assert answer.finish is not None
    told: dict[str, Any] = {
        **record,
        "text": answer.text,
        "finish_reason": answer.finish.value,
        "num_tokens": len(answer.tokens),
    }
    if answer.logprobs:
        told["tokens"], told["logprobs"] = answer.tokens, answer.logprobs
        told["alternatives"] = answer.alternatives
    return json.dumps(told, ensure_ascii=False) + "\n"
