"""Prompts in text, answers in text: what is asked of the engine, and its tokens put together.

The layer between texts and `Engine`: it encodes nothing and knows no model, only a tokenizer's ids and the
strings at which an answer ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

from maxlm.data.tokenizers import Tokenizer
from maxlm.generate.engine import Engine
from maxlm.generate.request import Finish, Request, Token
from maxlm.generate.text import TextStream, check_stop


@dataclass
class Completion:
    """An answer.

    Attributes:
        text: without what stopped it.
        tokens: ids, without one that stopped it.
        finish: why it ended; None: it has not yet.
        logprobs: of each token; empty where not asked for.
        alternatives: per token the likeliest ones and their log-probabilities; likewise.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    finish: Finish | None = None
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[tuple[tuple[int, float], ...]] = field(default_factory=list)


@dataclass
class _Open:
    """An answer on its way."""

    index: int
    request: Request
    stream: TextStream
    answer: Completion
    slides: bool


@dataclass(frozen=True)
class Piece:
    """Text that has arrived.

    Attributes:
        index: of the request among those that were asked.
        text: it may be empty.
        answer: all of it so far; the same object every time.
    """

    index: int
    text: str
    answer: Completion


class Completions:
    """Answers in text of one engine; requests may be added while others are answered."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer):
        self.engine = engine
        self.tokenizer = tokenizer
        self._open: dict[int, _Open] = {}
        self._mail: dict[int, deque[Piece]] = {}  # of answers that are followed

    def add(
        self, index: int, request: Request, stop: Sequence[str] = (), *, slide: bool = False
    ) -> None:
        """Ask for an answer, which pieces will call `index`.

        Args:
            index: a number of the caller's own.
            request: in tokens.
            stop: strings that end the answer.
            slide: whether, when the context is full and tokens are still wanted, the newer half of it
                is read again and the answer goes on.

        Raises:
            ConfigError: the model cannot do it, or a stop string can be in no text.
        """
        check_stop(stop)
        stream = TextStream(self.tokenizer, stop)
        number = self.engine.submit(request)
        self._open[number] = _Open(index, request, stream, Completion(), slide)

    def cancel(self, index: int) -> None:
        """Give an answer up."""
        for number in [n for n, one in self._open.items() if one.index == index]:
            del self._open[number]
            self.engine.cancel(number)

    @property
    def waiting(self) -> int:
        """Answers that have not ended."""
        return len(self._open)

    def step(self) -> list[Piece]:
        """Do one piece of work; what has arrived by it."""
        return [self._piece(t) for t in self.engine.step() if t.request in self._open]

    def pieces(self) -> Iterator[Piece]:
        """What arrives, until every answer has ended."""
        while self._open:
            yield from self.step()

    def follow(self, indices: Sequence[int]) -> Generator[Piece]:
        """What arrives of some answers until they have ended; of others, it waits for who follows them.

        An iterator that is dropped gives its answers up.
        """
        mail = {index: deque[Piece]() for index in indices}
        self._mail |= mail
        try:
            open_ = set(indices)
            while open_:
                for index in sorted(open_):
                    while mail[index]:
                        piece = mail[index].popleft()
                        if piece.answer.finish is not None and not mail[index]:
                            open_.discard(index)
                        yield piece
                if open_ and not any(mail[index] for index in open_):
                    for piece in self.step():
                        if piece.index in self._mail:
                            self._mail[piece.index].append(piece)
        finally:
            for index in indices:
                del self._mail[index]
                self.cancel(index)

    def _piece(self, token: Token) -> Piece:
        one = self._open[token.request]
        answer, stream, text = one.answer, one.stream, ""
        if token.finish is not Finish.STOP:
            answer.tokens.append(token.id)
            if token.logprob is not None:
                answer.logprobs.append(token.logprob)
                answer.alternatives.append(token.alternatives)
            text = stream.add(token.id)
        answer.finish = token.finish
        if stream.stopped:
            answer.finish = Finish.STOP
            self.engine.cancel(token.request)
        if answer.finish is not None:
            del self._open[token.request]
            if answer.finish is Finish.CONTEXT and one.slides:
                self._slide(one)
            else:
                text += stream.end()
        answer.text += text
        return Piece(one.index, text, answer)

    def _slide(self, one: _Open) -> None:
        """Ask for the rest of an answer after the newer half of what the model could see."""
        read = [*one.request.prompt, *one.answer.tokens]
        left, options = one.request.max_tokens, one.request.options
        request = replace(
            one.request,
            prompt=read[-max(1, self.engine.context_length // 2) :],
            max_tokens=None if left is None else left - len(one.answer.tokens),
            options=replace(options, seed=options.seed + len(read)),  # else the draws repeat
        )
        one.answer.finish = None
        number = self.engine.submit(request)
        self._open[number] = _Open(one.index, one.request, one.stream, one.answer, one.slides)
