"""Beam search against every possible answer, and against transformers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from maxlm.errors import ConfigError
from maxlm.generate.beam import BeamOptions, BeamSearch
from maxlm.generate.request import Finish, Request
from tests.cases import campaign
from tests.generate.models import CONTEXT, VOCAB, logits_after, model_of, prompts_of
from tests.interop.tiny import prompts, read_tiny, write_folder

VARIANT = "grouped queries"


def search(requests, **options):
    model, params = model_of(VARIANT)
    return BeamSearch(model, CONTEXT).run(params, requests, BeamOptions(**options))


def test_with_as_many_beams_as_tokens_it_finds_the_likeliest_of_all_answers():
    (prompt,) = prompts_of(5)
    (found,) = search([Request(prompt, 2)], beams=VOCAB, length_penalty=0.0)

    def logprobs(text):
        logits = logits_after(VARIANT, text).astype(np.float64)
        return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()

    first = logprobs(prompt)
    # The likeliest pair begins with one of the likelier tokens.
    heads = np.argsort(-first)[:12]
    pairs = {
        (int(a), int(b)): first[a] + second[b]
        for a in heads
        for second in [logprobs([*prompt, int(a)])]
        for b in np.argsort(-second)[:5]
    }
    best = sorted(pairs, key=pairs.get, reverse=True)[:3]
    assert [tuple(h.tokens) for h in found[:3]] == best
    assert [h.logprob for h in found[:3]] == pytest.approx([pairs[p] for p in best], abs=1e-4)
    assert found[0].finish is Finish.LENGTH


@pytest.mark.slow
def test_prompts_together_are_searched_as_each_alone():
    requests = [
        Request(p, n, stop=frozenset({7})) for p, n in zip(prompts_of(4, 9), (6, 3), strict=True)
    ]
    together = search(requests, beams=3)
    for request, found in zip(requests, together, strict=True):
        (alone,) = search([request], beams=3)
        assert [h.tokens for h in found] == [h.tokens for h in alone]
        assert len(found) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("beams", "penalty", "early"), [(4, 1.0, False), (3, 0.0, True), campaign(2, 2.0, False)]
)
def test_as_transformers_searches(tmp_path, beams, penalty, early):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    write_folder("llama3", tmp_path)
    model, params = read_tiny(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    theirs.generation_config.eos_token_id = None
    searching = BeamSearch(model, 40)
    for row, size, most in itertools.product(prompts()[:2], (5, 12), (8,)):
        prompt = row[:size].tolist()
        greedy = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=4, do_sample=False, pad_token_id=0
        )[0, size:].tolist()
        for ends in ([], [greedy[2]]):  # a token that ends an answer early
            options = {"eos_token_id": ends} if ends else {}
            wanted = theirs.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, size, dtype=torch.long),
                max_new_tokens=most,
                num_beams=beams,
                num_return_sequences=beams,
                length_penalty=penalty,
                early_stopping=early,
                do_sample=False,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_scores=True,
                **options,
            )
            request = Request(prompt, most, stop=frozenset(ends))
            (found,) = searching.run(params, [request], BeamOptions(beams, penalty, early))
            texts = []
            for sequence in wanted.sequences[:, size:].tolist():
                end = next((i for i, t in enumerate(sequence) if t in ends), len(sequence))
                texts.append(sequence[:end])
            assert [h.tokens for h in found] == texts
            scores = wanted.sequences_scores.tolist()
            assert [h.score for h in found] == pytest.approx(scores, abs=1e-4)


@pytest.mark.slow
def test_a_hypothesis_ends_where_its_tokens_end_it():
    (prompt,) = prompts_of(4)
    model, params = model_of(VARIANT)
    run = BeamSearch(model, CONTEXT).run
    (plain,) = run(params, [Request(prompt, 6)], BeamOptions(3, 0.0))
    end = plain[0].tokens[2]
    # Ended by its tokens, a text holds its end; by a stop token it does not. Else they are the same.
    (ended,) = run(
        params, [Request(prompt, 6)], BeamOptions(3, 0.0), [lambda tokens: tokens[-1] == end]
    )
    (stopped,) = run(params, [Request(prompt, 6, stop=frozenset({end}))], BeamOptions(3, 0.0))
    assert any(h.finish is Finish.STOP for h in ended)
    assert [(h.score, h.finish) for h in ended] == [(h.score, h.finish) for h in stopped]
    for a, b in zip(ended, stopped, strict=True):
        assert a.tokens == ([*b.tokens, end] if b.finish is Finish.STOP else b.tokens)


def test_what_searches_nothing_is_refused():
    with pytest.raises(ConfigError, match="beams is 0"):
        BeamOptions(beams=0)
    with pytest.raises(ConfigError, match="length_penalty is nan"):
        BeamOptions(length_penalty=float("nan"))
    with pytest.raises(ConfigError, match="the prompt is empty"):
        search([Request([], 3)])
