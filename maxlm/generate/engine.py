"""Many requests at once on one model: they join and leave while others go on.

`submit` queues a request, `step` does a piece of work and returns the tokens that have arrived, `cancel` gives
one up. A step is one forward pass: prompts of waiting requests where rows are free, or one token for every
active row, in turns where there are both. One pass is always in flight, so that the device works while the
host looks at tokens.

What a request is answered does not depend on the others but for the rounding of matmuls of another shape.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import jax
import numpy as np

from maxlm.generate.bucket import bucket
from maxlm.generate.request import Finish, Request, Token
from maxlm.generate.rows import Newcomers, Programs, Rows, Size, row_options
from maxlm.generate.sampling import Drawn, SamplingOptions, Steps
from maxlm.model.definition import ModelDefinition, Params
from maxlm.parallel.placement import on_mesh_of

MAX_ROWS = 16
LONGEST_PASS = (
    512  # tokens of a prompt that are read at once; others wait no longer than that takes
)
MAX_TOKENS_READ = 2048  # of several prompts together
IN_FLIGHT = 2  # passes that are dispatched before the first one's tokens are waited for


@dataclass
class _Live:
    """A request in a row."""

    number: int
    request: Request
    row: int
    most: int  # tokens to draw
    read: int = 0  # tokens of its prompt
    dispatched: int = 0  # tokens that were asked of the device
    arrived: int = 0  # tokens that were handed out

    @property
    def size(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt)


class Engine:
    """Generates for many requests with one model."""

    def __init__(
        self,
        programs: Programs,
        params: Params,
        *,
        context_length: int,
        max_rows: int = MAX_ROWS,
    ):
        """Prepare; nothing is allocated before the first request.

        Args:
            programs: of the model.
            params: its parameters and variables, on their mesh.
            context_length: tokens that it sees at once.
            max_rows: requests that are answered at once; others wait.
        """
        self.programs = programs
        self.params = params
        self.context_length = context_length
        self.max_rows = max_rows
        self._read_last = False
        self._waiting: deque[tuple[int, Request]] = deque()
        self._rows: dict[int, _Live] = {}  # row → who has it
        self._size: Size | None = None
        self._state: Rows | None = None
        self._flying: deque[tuple[list[tuple[int, _Live]], Drawn]] = deque()
        self._count = 0
        self._live: dict[int, _Live] = {}  # number → requests whose tokens are still wanted

    @staticmethod
    def of(
        model: ModelDefinition, params: Params, *, context_length: int, max_rows: int = MAX_ROWS
    ) -> Engine:
        """An engine with programs of its own."""
        programs = Programs(model, min(LONGEST_PASS, context_length))
        return Engine(programs, params, context_length=context_length, max_rows=max_rows)

    def submit(self, request: Request) -> int:
        """Queue a request; its number. Raises ConfigError where the model cannot do it."""
        request.check(self.context_length, self.programs.vocab_size)
        self._count += 1
        self._waiting.append((self._count, request))
        return self._count

    def cancel(self, number: int) -> None:
        """Give a request up, whether it waits or is being answered; one that ended is no mistake."""
        live = self._live.pop(number, None)
        if live is None:
            self._waiting = deque((n, r) for n, r in self._waiting if n != number)
        elif self._rows.get(live.row) is live:
            del self._rows[live.row]

    @property
    def busy(self) -> bool:
        """Whether tokens are still to come."""
        return bool(self._waiting or self._live)

    def step(self) -> list[Token]:
        """Dispatch the next pass, and return the tokens of the oldest one once enough are in flight."""
        dispatched = self._dispatch()
        if self._flying and (not dispatched or len(self._flying) >= IN_FLIGHT):
            tokens = self._collect(*self._flying.popleft())
        else:
            tokens = []
        if not self.busy:
            # What is still in flight was drawn for nobody. The next batch may be of another size.
            self._flying.clear()
            self._state = self._size = None
        return tokens

    def run(self) -> list[list[Token]]:
        """Answer all that was submitted: tokens of each request, in order."""
        answers: dict[int, list[Token]] = {n: [] for n in [*self._live, *dict(self._waiting)]}
        while self.busy:
            for token in self.step():
                answers[token.request].append(token)
        return list(answers.values())

    def _dispatch(self) -> bool:
        ways = [self._read_prompts, self._draw_tokens]
        if self._read_last:
            ways.reverse()
        with on_mesh_of(self.params):
            return any(way() for way in ways)  # the first that finds something to do

    def _read_prompts(self) -> bool:
        """Read into rows what waits, as much as one pass takes; whether there was anything."""
        self._read_last = True
        group = self._group()
        if not group:
            return False
        longest = max(end - live.read for live, end in group)
        width = min(bucket(longest, 16), self.programs.longest_pass)
        fresh = all(live.read == 0 for live, _ in group)
        assert self._state is not None and self._size is not None
        new = self._newcomers(group, width)
        steps = Steps.of([live.request.options for live, _ in group])
        self._state, drawn = self.programs.read(
            self.params, self._state, new, steps=steps, fresh=fresh
        )
        owners = []
        for index, (live, end) in enumerate(group):
            live.read = end
            if end == live.size:
                self._asked(live)
                owners.append((index, live))
        self._flying.append((owners, drawn))
        return True

    def _group(self) -> list[tuple[_Live, int]]:
        """Requests whose prompts the next pass reads, and up to where: all begin or all go on."""
        members = [live for live in self._rows.values() if 0 < live.read < live.size]
        if not members:
            self._admit()
            members = [live for live in self._rows.values() if live.read == 0]
        group: list[tuple[_Live, int]] = []
        width = 0
        for live in members:
            end = min(live.size, live.read + self.programs.longest_pass)
            wider = max(width, bucket(end - live.read, 16))
            if group and wider * bucket(len(group) + 1, 1) > MAX_TOKENS_READ:
                break
            group.append((live, end))
            width = wider
        return group

    def _admit(self) -> None:
        """Give waiting requests rows, and the batch the size that they need."""
        entering: list[_Live] = []
        taken = set(self._rows)
        free = [row for row in range(self.max_rows) if row not in taken]
        while self._waiting and free:
            number, request = self._waiting.popleft()
            live = _Live(number, request, free.pop(0), request.most_tokens(self.context_length))
            self._rows[live.row] = self._live[number] = live
            entering.append(live)
        if entering:
            self._grow()

    def _grow(self) -> None:
        """Make the batch large enough for all that have rows."""
        everyone = self._rows.values()
        now = self._size or Size(0, 0)
        # The last token that is drawn is not read.
        longest = max(live.size + live.most - 1 for live in everyone)
        rows = 1 + max(live.row for live in everyone)
        size = Size(
            max(now.rows, min(bucket(rows, 1), self.max_rows)),
            max(now.length, min(bucket(longest, 64), self.context_length)),
            now.past or any(live.request.options.counts_tokens for live in everyone),
            now.bias or any(live.request.options.logit_bias for live in everyone),
        )
        if self._state is None:
            self._state = self.programs.empty(self.params, size)
        elif size != self._size:
            self._state = self.programs.resize(self.params, self._state, size)
        self._size = size

    def _newcomers(self, group: list[tuple[_Live, int]], width: int) -> Newcomers:
        assert self._size is not None
        count, vocab = bucket(len(group), 1), self.programs.vocab_size
        tokens = np.zeros((count, width), np.int32)
        rows = np.full(count, self._size.rows, np.int32)  # beyond the end: nobody's
        starts, counts = np.zeros(count, np.int32), np.zeros(count, np.int32)
        prompt = np.zeros((count, vocab), bool) if self._size.past else None
        bias = np.zeros((count, vocab), np.float32) if self._size.bias else None
        options = [live.request.options for live, _ in group]
        for i, (live, end) in enumerate(group):
            part = live.request.prompt[live.read : end]
            tokens[i, : len(part)] = part
            rows[i], starts[i], counts[i] = live.row, live.read, len(part)
            if prompt is not None:
                prompt[i, np.asarray(live.request.prompt)] = True
            if bias is not None:
                for token, value in live.request.options.logit_bias.items():
                    bias[i, token] = value
        options += [SamplingOptions()] * (count - len(group))
        return Newcomers(tokens, rows, starts, counts, row_options(options), prompt, bias)

    def _draw_tokens(self) -> bool:
        """Draw one token for every row that wants more; whether there was any."""
        self._read_last = False
        owners = sorted((row, live) for row, live in self._rows.items() if live.read == live.size)
        if not owners:
            return False
        assert self._state is not None and self._size is not None
        active = np.zeros(self._size.rows, bool)
        for row, live in owners:
            active[row] = True
            self._asked(live)
        steps = Steps.of([live.request.options for _, live in owners])
        self._state, drawn = self.programs.step(self.params, self._state, active, steps=steps)
        self._flying.append((owners, drawn))
        return True

    def _asked(self, live: _Live) -> None:
        """Count a token that is asked for; after its last one a request needs no row."""
        live.dispatched += 1
        if live.dispatched == live.most:
            del self._rows[live.row]

    def _collect(self, owners: list[tuple[int, _Live]], drawn: Drawn) -> list[Token]:
        """Wait for a pass and hand out its tokens to those who still want them."""
        host = jax.device_get(drawn)  # also of a pass that only read: few may be in flight at once
        tokens = []
        for index, live in owners:
            if self._live.get(live.number) is not live:
                continue  # ended, or given up
            live.arrived += 1
            token = _token(live, host, index)
            tokens.append(token)
            if token.finish is not None:
                self.cancel(live.number)
        return tokens


def _token(live: _Live, drawn: Drawn, index: int) -> Token:
    """The token of a row, as the host has it."""
    chosen, request = int(drawn.token[index]), live.request
    finish = None
    if chosen in request.stop:
        finish = Finish.STOP
    elif live.arrived == live.most:
        finish = Finish.LENGTH if live.most == request.max_tokens else Finish.CONTEXT
    asked = request.options.logprobs
    if asked is None or drawn.logprob is None:
        return Token(live.number, chosen, finish)
    best: tuple[tuple[int, float], ...] = ()
    if asked and drawn.alternatives is not None and drawn.alternative_logprobs is not None:
        ids, values = drawn.alternatives[index], drawn.alternative_logprobs[index]
        best = tuple((int(i), float(v)) for i, v in zip(ids[:asked], values[:asked], strict=True))
    return Token(live.number, chosen, finish, float(drawn.logprob[index]), best)
