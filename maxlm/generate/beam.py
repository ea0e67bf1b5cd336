"""Beam search: the likeliest whole answers, not the likeliest next tokens.

In: prompts; out: for each the best hypotheses by `log-probability / length ** length_penalty` (Wu et al.,
arXiv:1609.08144, without their constant), as transformers defines it. The device extends all beams of all
prompts by one pass a step and ranks what follows; which beams live and which are done is decided here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from maxlm.errors import ConfigError
from maxlm.generate.bucket import bucket
from maxlm.generate.request import Finish, Request
from maxlm.model.cache import Cache, Pass, placed
from maxlm.model.definition import ModelDefinition, Params
from maxlm.parallel.axes import constrain
from maxlm.parallel.placement import on_mesh_of

Caches = list[list[Cache]]
# Whether an answer of these tokens has ended, the last of them a part of it.
Ends = Callable[[Sequence[int]], bool]


@dataclass(frozen=True)
class BeamOptions:
    """How to search.

    Attributes:
        beams: hypotheses that are followed at once, and how many come back.
        length_penalty: power of the length by which a log-probability is divided: above 0 favours
            longer answers, below 0 shorter ones.
        early_stopping: whether to end with as many finished hypotheses as beams; else once the best
            unfinished one, were it to end now, is behind the worst of them.
    """

    beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool = False

    def __post_init__(self) -> None:
        """Refuse what searches nothing. Raises ConfigError."""
        if self.beams < 1:
            raise ConfigError(f"beams is {self.beams}: follow at least 1 (4 is usual)")
        if not math.isfinite(self.length_penalty):
            raise ConfigError(f"length_penalty is {self.length_penalty}: use a number (1 is usual)")


@dataclass(frozen=True)
class Hypothesis:
    """An answer.

    Attributes:
        tokens: ids, without one that stopped it.
        logprob: natural logarithm of its probability, that of its end included.
        score: by which hypotheses are ranked.
        finish: why it ended.
        text: of the tokens, without what stopped it; filled in where a tokenizer is at hand.
    """

    tokens: list[int]
    logprob: float
    score: float
    finish: Finish
    text: str = ""


@dataclass
class _Search:
    """The search for one prompt."""

    request: Request
    most: int
    options: BeamOptions
    ends: Ends | None = None
    beams: list[list[int]] = field(default_factory=list)  # drawn tokens of each, the best first
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    finished: list[Hypothesis] = field(default_factory=list)
    ended: bool = False

    def follow(self, values: np.ndarray, ids: np.ndarray, vocab: int) -> list[int]:
        """Take the ranked candidates; the parents of the beams that go on.

        Args:
            values: log-probabilities of the candidates, the best first.
            ids: parent × vocabulary + token of each.
            vocab: size of the vocabulary.
        """
        parents, tokens = ids // vocab, ids % vocab
        length = len(self.beams[0]) + 1
        going: list[tuple[int, int, float]] = []
        for rank, (parent, token, value) in enumerate(zip(parents, tokens, values, strict=True)):
            before = self.beams[parent]
            ended = self.ends is not None and self.ends([*before, int(token)])
            if ended or int(token) in self.request.stop or length == self.most:
                # Only what would have been followed counts as found.
                if rank < self.options.beams:
                    self._finish(before, int(token), float(value), ended)
            elif len(going) < self.options.beams:
                going.append((int(parent), int(token), float(value)))
        if length == self.most or not going:
            self.ended = True
            return list(range(self.options.beams))
        self.beams = [[*self.beams[parent], token] for parent, token, _ in going]
        self.scores = np.array([value for *_, value in going], np.float32)
        self.ended = self._is_over(length)
        return [parent for parent, *_ in going]

    def last_tokens(self) -> np.ndarray:
        """`[k]` int32; where fewer beams go on, the rest are computed for nobody."""
        tokens = [beam[-1] if beam else 0 for beam in self.beams]
        return np.array(_full(tokens, self.options.beams), np.int32)

    def beam_scores(self) -> np.ndarray:
        """`[k]` float32 log-probabilities of the beams, -inf of those that are none."""
        scores = np.full(self.options.beams, -np.inf, np.float32)
        scores[: len(self.scores)] = self.scores
        return scores

    def _finish(self, before: list[int], token: int, logprob: float, ended: bool) -> None:
        stops = token in self.request.stop
        asked = self.request.max_tokens
        at_end = Finish.LENGTH if self.most == asked else Finish.CONTEXT
        score = logprob / (len(before) + 1) ** self.options.length_penalty
        tokens = list(before) if stops else [*before, token]
        one = Hypothesis(tokens, logprob, score, Finish.STOP if stops or ended else at_end)
        best = sorted([*self.finished, one], key=lambda h: -h.score)
        self.finished = best[: self.options.beams]

    def _is_over(self, length: int) -> bool:
        if len(self.finished) < self.options.beams:
            return False
        if self.options.early_stopping:
            return True
        best = float(self.scores[0]) / length**self.options.length_penalty
        return best <= self.finished[-1].score


class BeamSearch:
    """Searches with one model; its programs are compiled once per shape."""

    def __init__(self, model: ModelDefinition, context_length: int):
        assert model.config.vocab_size
        self.model = model
        self.context_length = context_length
        self.vocab_size = model.config.vocab_size
        self._read = jax.jit(self._read_prompts, static_argnames=("beams", "length", "candidates"))
        self._next = jax.jit(self._extend, static_argnames="candidates", donate_argnames="caches")

    def run(
        self,
        params: Params,
        requests: Sequence[Request],
        options: BeamOptions,
        ends: Sequence[Ends | None] = (),
    ) -> list[list[Hypothesis]]:
        """The best hypotheses of each request, the best first; its sampling options are not looked at.

        Args:
            params: of the model.
            requests: the prompts.
            options: how to search.
            ends: per request what else ends an answer than its stop tokens; empty: nothing.

        Raises:
            ConfigError: a prompt is empty or longer than the context.
        """
        for request in requests:
            request.check(self.context_length, self.vocab_size)
        k, vocab = options.beams, self.vocab_size
        searches = [
            _Search(request, request.most_tokens(self.context_length), options, end, [[]])
            for request, end in zip(requests, ends or [None] * len(requests), strict=True)
        ]
        longest = max(len(s.request.prompt) + s.most - 1 for s in searches)
        tokens, counts = _prompts(requests)
        lengths = np.repeat(counts, k)
        # Were one beam to end in every way at once, the others would still be full.
        ways = max(len(s.request.stop) + (s.ends is not None) for s in searches)
        candidates = min(max(2, 1 + ways) * k, vocab)
        with on_mesh_of(params):
            length = min(bucket(longest, 64), self.context_length)
            sizes = {"beams": k, "length": length, "candidates": candidates}
            caches, *ranked = self._read(params, tokens, counts, **sizes)
            parents = self._follow(searches, ranked, vocab)
            while not all(search.ended for search in searches):
                last = np.concatenate([s.last_tokens() for s in searches])
                scores = np.stack([s.beam_scores() for s in searches])
                caches, *ranked = self._next(
                    params, caches, last, lengths, parents, scores, candidates=candidates
                )
                lengths = lengths + 1
                parents = self._follow(searches, ranked, vocab)
        return [search.finished for search in searches]

    def _follow(self, searches: list[_Search], ranked: list[jax.Array], vocab: int) -> np.ndarray:
        """Let each search take its candidates; per beam the row of the caches that it goes on from."""
        values, ids = (np.asarray(a) for a in jax.device_get(ranked))
        rows = []
        for number, search in enumerate(searches):
            k = search.options.beams
            parents = (
                list(range(k))
                if search.ended
                else _full(search.follow(values[number], ids[number], vocab), k)
            )
            rows += [number * k + parent for parent in parents]
        return np.array(rows, np.int32)

    def _read_prompts(
        self,
        params: Params,
        tokens: jax.Array,
        counts: jax.Array,
        *,
        beams: int,
        length: int,
        candidates: int,
    ) -> tuple[Caches, jax.Array, jax.Array]:
        """Read prompts into the first row of each one's beams, and rank what follows."""
        decoder = self.model.bind(params)
        prompts = tokens.shape[0]
        caches = decoder.empty_caches(prompts * beams, length)
        rows = jnp.arange(prompts, dtype=jnp.int32) * beams
        now = Pass(rows, jnp.zeros_like(rows), counts, fresh=True, in_order=False)
        logits, caches = decoder.extend(tokens, caches, now)
        values, ids = _best(jax.nn.log_softmax(logits.astype(jnp.float32), -1), candidates)
        return caches, values, ids

    def _extend(
        self,
        params: Params,
        caches: Caches,
        tokens: jax.Array,
        lengths: jax.Array,
        parents: jax.Array,
        scores: jax.Array,
        *,
        candidates: int,
    ) -> tuple[Caches, jax.Array, jax.Array]:
        """Read each beam's last token after its parent's text, and rank what follows."""
        caches = placed(jax.tree.map(lambda a: jnp.take(a, parents, axis=1), caches))
        rows = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        now = Pass(rows, lengths, jnp.ones_like(rows), fresh=False, in_order=True)
        logits, caches = self.model.bind(params).extend(tokens[:, None], caches, now)
        logprobs = jax.nn.log_softmax(logits.astype(jnp.float32), -1)
        prompts, beams = scores.shape
        total = logprobs.reshape(prompts, beams, -1) + scores[..., None]
        values, ids = _best(total.reshape(prompts, -1), candidates)
        return caches, values, ids


def _best(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    values, ids = jax.lax.top_k(constrain(scores, "activation", "activation"), count)
    return values, ids.astype(jnp.int32)


def _full(items: list[int], count: int) -> list[int]:
    """The first of `items` repeated to `count`."""
    return items + items[:1] * (count - len(items))


def _prompts(requests: Sequence[Request]) -> tuple[np.ndarray, np.ndarray]:
    counts = np.array([len(r.prompt) for r in requests], np.int32)
    tokens = np.zeros((len(requests), bucket(int(counts.max()), 16)), np.int32)
    for row, request in zip(tokens, requests, strict=True):
        row[: len(request.prompt)] = request.prompt
    return tokens, counts
