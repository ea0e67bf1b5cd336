"""What happens between training steps: evaluation on every set, and samples for the eye."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from maxlm.config.derive_model import longest_length
from maxlm.evaluate.perplexity import evaluate_by_batch, make_eval_step
from maxlm.evaluate.sets import EvalSet, open_sets
from maxlm.generate.completions import Completions
from maxlm.generate.engine import LONGEST_PASS, Engine
from maxlm.generate.prompts import encode_prompts, end_tokens
from maxlm.generate.request import Request
from maxlm.generate.rows import Programs
from maxlm.generate.sampling import SamplingOptions
from maxlm.model.definition import Params
from maxlm.train.loop import Hook
from maxlm.train.setup import Run


def training_hooks(run: Run) -> list[Hook]:
    """The hooks that a run's config asks for: one for each evaluation set, one for the samples."""
    hooks = []
    if run.config.eval.sets:
        hooks += _evaluations(run)
    if run.config.eval.prompts:
        hooks.append(_sampling(run))
    return hooks


def _evaluations(run: Run) -> list[Hook]:
    eval_step = make_eval_step(run.model, run.token_bytes, run.config.parallel.compiler_options)

    def hook(one: EvalSet) -> Hook:
        def call(step: int, params: Params) -> Iterator[dict[str, Any] | None]:
            for result in evaluate_by_batch(eval_step, params, one.batches(run.mesh)):
                yield result and {"kind": "eval", "set": one.name, **result}

        return Hook(run.intervals.eval, call, makes=(("eval", one.name),))

    return [hook(one) for one in open_sets(run.config, run.tokenizer.hash)]


def _sampling(run: Run) -> Hook:
    config = run.config.eval
    context = longest_length(run.config.data)
    programs = Programs(run.model, min(LONGEST_PASS, context))
    # The seeds are the same every time, so that samples differ by the weights alone.
    options = [
        SamplingOptions(temperature=config.sample_temperature, seed=i)
        for i in range(len(config.prompts))
    ]
    prompts = encode_prompts(run.tokenizer, config.prompts, run.config.data)
    stop = end_tokens(run.tokenizer)

    def call(step: int, params: Params) -> Iterator[dict[str, Any] | None]:
        engine = Engine(programs, params, context_length=context)
        completions = Completions(engine, run.tokenizer)
        for index, (prompt, option) in enumerate(zip(prompts, options, strict=True)):
            request = Request(prompt, config.sample_tokens, option, stop)
            completions.add(index, request, slide=True)
        texts = {}
        while completions.waiting:
            for piece in completions.step():
                texts[piece.index] = piece.answer
            yield None
        for index, text in enumerate(config.prompts):
            yield {"kind": "sample", "prompt": text, "text": texts[index].text}

    makes = tuple(("sample", prompt) for prompt in config.prompts)
    return Hook(run.intervals.eval, call, makes=makes)
