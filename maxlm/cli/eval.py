"""`maxlm eval RUN`: loss, perplexity and bits per byte of a checkpoint."""

from __future__ import annotations

import argparse

from maxlm.cli.process_arguments import add_process_arguments, process_arguments

EPILOG = """\
examples:
  maxlm eval runs/quickstart                     the newest checkpoint on the run's own sets
  maxlm eval runs/books@2000 --json
  maxlm eval runs/books eval.sets.wiki.store=stores/wiki eval.sets.wiki.split=validation

The numbers are those that the run itself printed at that step: the same windows, the same sums.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    parser.add_argument("run", metavar="RUN[@STEP]", help="run folder, local or gs://")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="set an option"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per set")
    add_process_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate."""
    from maxlm.parallel.processes import joined

    with joined(**process_arguments(arguments)):
        return _evaluate(arguments)


def _evaluate(arguments: argparse.Namespace) -> int:
    import json

    from maxlm.errors import ConfigError
    from maxlm.evaluate.perplexity import evaluate, make_eval_step
    from maxlm.evaluate.sets import open_sets
    from maxlm.parallel.agreement import process_index
    from maxlm.train.loading import load

    trained = load(arguments.run, arguments.overrides)
    sets = open_sets(trained.config, trained.tokenizer.hash)
    if not sets:
        raise ConfigError(
            f"{arguments.run} names no evaluation set: add one, such as "
            "eval.sets.validation.store=STORE eval.sets.validation.split=validation"
        )
    eval_step = make_eval_step(
        trained.model, trained.token_bytes, trained.config.parallel.compiler_options
    )
    for one in sets:
        result = evaluate(eval_step, trained.params, one.batches(trained.mesh))
        if process_index():
            continue
        if arguments.json:
            print(json.dumps({"step": trained.step, "set": one.name, **result}))
        else:
            print(
                f"step {trained.step}  {one.name}: loss {result['loss']:.4f}  "
                f"perplexity {result['perplexity']:.3f}  "
                f"bits per byte {result['bits_per_byte']:.4f}  "
                f"({result['tokens']:,} tokens in {result['seconds']:.1f} s)"
            )
    return 0
