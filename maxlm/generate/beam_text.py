"""Beam search in texts: several prompts at once, stop strings, hypotheses with their text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from maxlm.data.tokenizers import Tokenizer
from maxlm.generate.beam import BeamOptions, BeamSearch, Ends, Hypothesis
from maxlm.generate.request import Request
from maxlm.generate.text import check_stop
from maxlm.model.definition import Params

Asked = tuple[Request, Sequence[str]]  # and the strings that end its answers


def search_texts(
    search: BeamSearch,
    params: Params,
    tokenizer: Tokenizer,
    asked: Sequence[Asked],
    options: BeamOptions,
    *,
    max_rows: int,
) -> Iterator[list[Hypothesis]]:
    """The best hypotheses of each request in their order, the best first.

    Args:
        search: of the model.
        params: its weights.
        tokenizer: its tokenizer.
        asked: requests, each with strings that end its answers, which they are no part of.
        options: how to search.
        max_rows: beams of all prompts that are searched at once; one prompt's may be more.

    Raises:
        ConfigError: a prompt is empty or longer than the context, or a stop string is in no text;
            before anything is searched.
    """
    for request, stop in asked:
        check_stop(stop)
        request.check(search.context_length, search.vocab_size)
    at_once = max(1, max_rows // options.beams)
    return _searched(search, params, tokenizer, asked, options, at_once)


def _searched(
    search: BeamSearch,
    params: Params,
    tokenizer: Tokenizer,
    asked: Sequence[Asked],
    options: BeamOptions,
    at_once: int,
) -> Iterator[list[Hypothesis]]:
    for first in range(0, len(asked), at_once):
        group = asked[first : first + at_once]
        ends = [_ends(tokenizer, stop) for _, stop in group]
        found = search.run(params, [request for request, _ in group], options, ends)
        for (_, stop), hypotheses in zip(group, found, strict=True):
            yield [replace(h, text=_text(tokenizer, h.tokens, stop)) for h in hypotheses]


def _ends(tokenizer: Tokenizer, stop: Sequence[str]) -> Ends | None:
    if not stop:
        return None
    strings = [text.encode() for text in stop]

    def ended(tokens: Sequence[int]) -> bool:
        said = tokenizer.decode_bytes(tokens)
        return any(string in said for string in strings)

    return ended


def _text(tokenizer: Tokenizer, tokens: Sequence[int], stop: Sequence[str]) -> str:
    text = tokenizer.decode_bytes(tokens).decode("utf-8", "replace")
    found = [at for at in map(text.find, stop) if at >= 0]
    return text[: min(found)] if found else text
