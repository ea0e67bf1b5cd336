"""Requests that join and leave are answered as if each were alone, its whole text read every time."""

from __future__ import annotations

import numpy as np
import pytest

from maxlm.errors import ConfigError
from maxlm.generate.request import Finish, Request
from maxlm.generate.sampling import SamplingOptions
from tests.generate.models import (
    CONTEXT,
    GREEDY,
    VARIANTS,
    VOCAB,
    answers,
    engine_of,
    likeliest,
    logits_after,
    prompts_of,
)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_with_the_cache_equals_the_growing_text_read_again(variant):
    prompts = prompts_of(3, 11, 16)
    found = answers(engine_of(variant), prompts, 12)
    assert found == [likeliest(variant, prompt, 12) for prompt in prompts]
    assert len({tuple(row) for row in found}) == 3  # the prompts matter


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["sliding window", "learned positions"])
def test_a_prompt_may_be_read_in_several_passes(variant):
    prompts = prompts_of(7, 20)
    engine = engine_of(variant, longest_pass=8)  # 8, 8 and 4: the last one wraps the ring around
    assert answers(engine, prompts, 6) == [likeliest(variant, prompt, 6) for prompt in prompts]


def test_requests_join_while_others_are_answered_and_leave_when_they_are_done():
    variant = "grouped queries"
    prompts, sizes = prompts_of(5, 9, 3, 12, 8), [9, 2, 6, 1, 4]
    engine = engine_of(variant, max_rows=2)
    numbers = [
        engine.submit(Request(p, n, GREEDY)) for p, n in zip(prompts[:3], sizes[:3], strict=True)
    ]
    found = {number: [] for number in numbers}
    together = 0
    while engine.busy:
        arrived = engine.step()
        for token in arrived:
            found.setdefault(token.request, []).append(token)
        together = max(together, len(arrived))
        if len(found[numbers[0]]) == 4 and len(numbers) == 3:  # in the middle of the first
            numbers += [
                engine.submit(Request(p, n, GREEDY))
                for p, n in zip(prompts[3:], sizes[3:], strict=True)
            ]
    for number, prompt, size in zip(numbers, prompts, sizes, strict=True):
        assert [token.id for token in found[number]] == likeliest(variant, prompt, size)
        assert [token.finish for token in found[number]] == [None] * (size - 1) + [Finish.LENGTH]
    assert together == 2  # as many as there are rows, and no more


def test_what_is_given_up_leaves_its_row_to_the_next():
    variant = "grouped queries"
    first, second, third = prompts_of(5, 9, 3)
    engine = engine_of(variant, max_rows=1)
    given_up = engine.submit(Request(first, 20, GREEDY))
    never = engine.submit(Request(third, 5, GREEDY))
    wanted = engine.submit(Request(second, 5, GREEDY))
    tokens = []
    while engine.busy:
        for token in engine.step():
            if token.request == given_up:
                engine.cancel(given_up)
                engine.cancel(never)
            tokens.append(token)
    assert [t.request for t in tokens] == [given_up, *[wanted] * 5]
    assert [t.id for t in tokens[1:]] == likeliest(variant, second, 5)
    engine.cancel(wanted)  # it ended: no mistake


def test_an_answer_ends_at_a_stop_token_and_with_the_context():
    variant = "grouped queries"
    (prompt,) = prompts_of(6)
    whole = likeliest(variant, prompt, CONTEXT - 6)
    at = next(i for i in range(2, 20) if whole[i] not in whole[:i])
    engine = engine_of(variant)
    engine.submit(Request(prompt, 20, GREEDY, frozenset({whole[at], VOCAB - 1})))
    engine.submit(Request(prompt, 100, GREEDY))
    stopped, full = engine.run()
    assert [t.id for t in stopped] == whole[: at + 1] and stopped[-1].finish is Finish.STOP
    # The last token of a full context is drawn and not read.
    assert [t.id for t in full][:-1] == whole and len(full) == CONTEXT - 6 + 1
    assert full[-1].finish is Finish.CONTEXT


def test_an_engine_serves_one_batch_after_the_other_of_any_size():
    variant = "grouped queries"
    engine = engine_of(variant)
    for sizes in ([4], [3, 5, 9, 2], [12]):
        prompts = prompts_of(*sizes, seed=len(sizes))
        assert answers(engine, prompts, 4) == [likeliest(variant, p, 4) for p in prompts]
    assert not engine.busy and engine.step() == []


def test_draws_are_their_seed_and_place_whoever_else_is_answered():
    variant = "grouped queries"
    prompts = prompts_of(6, 6, 9, 4)
    options = [SamplingOptions(temperature=2.0, top_p=0.95, seed=seed) for seed in (3, 4, 5, 6)]
    engine = engine_of(variant)
    alone = [answers(engine, [p], 10, o)[0] for p, o in zip(prompts, options, strict=True)]
    for prompt, option in zip(prompts, options, strict=True):
        engine.submit(Request(prompt, 10, option))
    assert [[t.id for t in tokens] for tokens in engine.run()] == alone
    assert answers(engine, prompts[:1], 10, SamplingOptions(2.0, top_p=0.95, seed=7)) != alone[:1]
    assert answers(engine, prompts[:1], 5, options[0]) == [alone[0][:5]]
    assert max(map(max, alone)) < VOCAB  # the table's padding is no token


def test_logprobs_are_the_models_own_whatever_is_done_to_choose():
    variant = "grouped queries"
    prompt, other = prompts_of(6, 8)
    engine = engine_of(variant)
    odd = {"logit_bias": {5: 100.0}, "repetition_penalty": 1.3, "logprobs": 3}
    engine.submit(Request(prompt, 3, SamplingOptions(temperature=0.5, **odd)))
    engine.submit(Request(other, 3, GREEDY))
    told, silent = engine.run()
    text = list(prompt)
    for token in told:
        logits = logits_after(variant, text).astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum())
        assert token.id == 5  # the bias decides …
        assert token.logprob == pytest.approx(logprobs[5], abs=1e-4)  # … and is not told
        best = np.argsort(-logprobs)[:3]
        assert [i for i, _ in token.alternatives] == best.tolist()
        assert [v for _, v in token.alternatives] == pytest.approx(logprobs[best], abs=1e-4)
        text.append(token.id)
    assert [t.id for t in silent] == likeliest(variant, other, 3)
    assert all(t.logprob is None and not t.alternatives for t in silent)


def test_penalties_see_the_prompt_and_what_was_drawn():
    variant = "grouped queries"
    (prompt,) = prompts_of(6)
    engine = engine_of(variant)
    options = SamplingOptions(
        temperature=0, repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.2
    )
    found = answers(engine, [prompt], 12, options)[0]
    text = list(prompt)
    for token in found:
        logits = logits_after(variant, text).copy()
        drawn = np.bincount(text[len(prompt) :], minlength=VOCAB)
        seen = list(set(text))
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / 1.2, logits[seen] * 1.2)
        logits -= 0.2 * drawn + 0.3 * (drawn > 0)
        assert token == logits.argmax()
        text.append(token)
    assert found != likeliest(variant, prompt, 12)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([], 3), "the prompt is empty"),
        (Request([1], 0), "max_tokens is 0"),
        (Request([1] * 40, 3), "the prompt has 40 tokens, and this model sees 32 at once"),
        (Request([1, 97], 3), "prompt has token 97, and the vocabulary has 0 to 96"),
        (
            Request([1], 3, SamplingOptions(logit_bias={200: 1.0})),
            "logit_bias has token 200, and the vocabulary has 0 to 96",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused(request_, message):
    engine = engine_of("grouped queries")
    with pytest.raises(ConfigError, match=message):
        engine.submit(request_)
    assert not engine.busy
