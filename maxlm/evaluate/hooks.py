"""What happens between training steps: evaluation on every set, and samples for the eye."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from maxlm.config.derive_model import longest_length
from maxlm.evaluate.perplexity import evaluate_by_batch, make_eval_step
from maxlm.evaluate.sets import EvalSet, open_sets
from maxlm.generate.generator import Generator
from maxlm.generate.prompts import encode_prompts, until_end
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
    generator = Generator(run.model, context_length=longest_length(run.config.data))
    options = SamplingOptions(temperature=config.sample_temperature)
    prompts = encode_prompts(run.tokenizer, config.prompts, run.config.data)

    def call(step: int, params: Params) -> Iterator[dict[str, Any] | None]:
        # The seed is the same every time, so that samples differ by the weights alone.
        stream = generator.stream(params, prompts, max_tokens=config.sample_tokens, options=options)
        rows = []
        for row in stream:
            rows.append(row)
            yield None
        drawn = np.stack(rows, axis=1)  # [B, tokens]
        for prompt, tokens in zip(config.prompts, drawn, strict=True):
            yield {
                "kind": "sample",
                "prompt": prompt,
                "text": run.tokenizer.decode(until_end(tokens.tolist(), run.tokenizer.eos_id)),
            }

    makes = tuple(("sample", prompt) for prompt in config.prompts)
    return Hook(run.intervals.eval, call, makes=makes)
