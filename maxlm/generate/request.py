"""What is asked of a model, in tokens, and what comes back of it, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from maxlm.errors import ConfigError
from maxlm.generate.sampling import SamplingOptions


class Finish(Enum):
    """Why an answer ended."""

    STOP = "stop"  # a token or a string that ends it
    LENGTH = "length"  # as many tokens as were asked for
    CONTEXT = "context"  # as many as the model can see at once


@dataclass(frozen=True)
class Request:
    """A prompt to continue.

    Attributes:
        prompt: token ids.
        max_tokens: most tokens to draw; None: up to the context.
        options: how each is chosen.
        stop: token ids that end the answer, which they are no part of.
    """

    prompt: Sequence[int]
    max_tokens: int | None = None
    options: SamplingOptions = field(default_factory=SamplingOptions)
    stop: frozenset[int] = frozenset()

    def check(self, context_length: int, vocab_size: int) -> None:
        """Refuse what this model cannot do. Raises ConfigError."""
        size = len(self.prompt)
        if not size:
            raise ConfigError("the prompt is empty: give it some text")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"max_tokens is {self.max_tokens}: ask for at least 1")
        if size > context_length:
            raise ConfigError(
                f"the prompt has {size:,} tokens, and this model sees {context_length:,} at once; "
                f"shorten it by {size - context_length:,}"
            )
        for what, tokens in (("prompt", self.prompt), ("logit_bias", self.options.logit_bias)):
            for token in tokens:
                if not 0 <= token < vocab_size:
                    raise ConfigError(
                        f"{what} has token {token}, and the vocabulary has 0 to {vocab_size - 1}: "
                        "was it encoded by another model's tokenizer?"
                    )

    def most_tokens(self, context_length: int) -> int:
        """How many tokens will be drawn if nothing stops it.

        The last one of a full context is drawn too, though the model will never read it.
        """
        room = context_length - len(self.prompt) + 1
        return room if self.max_tokens is None else min(self.max_tokens, room)


@dataclass(frozen=True)
class Token:
    """One drawn token.

    Attributes:
        request: whose it is, as `Engine.submit` numbered it.
        id: the token.
        finish: why it is the last one; None: others follow. Of `STOP`, it is no part of the answer.
        logprob: natural logarithm of the model's probability; None: not asked for.
        alternatives: the likeliest tokens and theirs, the likeliest first.
    """

    request: int
    id: int
    finish: Finish | None = None
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
