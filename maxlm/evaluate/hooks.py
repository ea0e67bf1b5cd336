"""What happens between training steps: evaluation on every set, and samples for the eye."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from maxlm.config.derive_model import longest_length
from maxlm.evaluate.perplexity import evaluate, make_eval_step
from maxlm.evaluate.sets import open_sets
from maxlm.generate.generator import Generator
from maxlm.generate.prompts import encode_prompts, until_end
from maxlm.generate.sampling import SamplingOptions
from maxlm.model.definition import Params
from maxlm.train.loop import Hook
from maxlm.train.setup import Run


def training_hooks(run: Run) -> list[Hook]:
    """The hooks that a run's config asks for."""
    hooks = []
    if run.config.eval.sets:
        hooks.append(Hook(run.intervals.eval, _evaluation(run)))
    if run.config.eval.prompts:
        hooks.append(Hook(run.intervals.eval, _sampling(run)))
    return hooks


def _evaluation(run: Run) -> Any:
    eval_step = make_eval_step(run.model, run.token_bytes, run.config.parallel.compiler_options)
    sets = open_sets(run.config, run.tokenizer.hash)

    def call(step: int, params: Params) -> Iterator[dict[str, Any]]:
        for one in sets:
            result = evaluate(eval_step, params, one.batches(run.mesh))
            yield {"kind": "eval", "set": one.name, **result}

    return call


def _sampling(run: Run) -> Any:
    config = run.config.eval
    generator = Generator(run.model, context_length=longest_length(run.config.data))
    options = SamplingOptions(temperature=config.sample_temperature)
    prompts = encode_prompts(run.tokenizer, config.prompts, run.config.data)

    def call(step: int, params: Params) -> Iterator[dict[str, Any]]:
        # The seed is the same every time, so that samples differ by the weights alone.
        stream = generator.stream(params, prompts, max_tokens=config.sample_tokens, options=options)
        drawn = np.stack(list(stream), axis=1)  # [B, tokens]
        for prompt, tokens in zip(config.prompts, drawn, strict=True):
            yield {
                "kind": "sample",
                "prompt": prompt,
                "text": run.tokenizer.decode(until_end(tokens.tolist(), run.tokenizer.eos_id)),
            }

    return call
