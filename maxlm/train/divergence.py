"""Ends a run in which nothing is learned any more: every step is skipped.

In come the metrics of finished steps, in order; out comes a `DivergedError` once too many in a row
were skipped because their gradients were not finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from maxlm.errors import DivergedError
from maxlm.parallel.agreement import process_count
from maxlm.train.step import StepMetrics

# A skipped step changes no weight, so the next one differs by its data alone. That twenty batches in
# a row are bad by themselves is not to be believed, even where every other one is (2^-20).
MOST_SKIPPED_IN_A_ROW = 20


class Divergence:
    """Counts skipped steps in a row."""

    def __init__(self, run: str):
        """Watch the run of a folder."""
        self._run = run
        self._in_a_row = 0

    def watch(self, step: int, window: Sequence[StepMetrics]) -> None:
        """Take note of finished steps, host values, the last one of `step`.

        Raises:
            DivergedError: the newest steps were all skipped.
        """
        for metrics in window:
            skipped = not math.isfinite(metrics.grad_norm)
            self._in_a_row = self._in_a_row + 1 if skipped else 0
        if self._in_a_row < MOST_SKIPPED_IN_A_ROW:
            return
        good = step - self._in_a_row
        finite = math.isfinite(window[-1].param_norm)
        state = "the weights themselves are not finite any more, and are not saved"
        if finite and process_count() > 1:  # an error on several processes saves nothing
            state = f"the weights are those of step {good}, and the newest checkpoint has these or older"
        elif finite:
            state = f"what is saved has the weights of step {good}"
        raise DivergedError(
            f"{self._run}: the gradients of the last {self._in_a_row} steps, up to step {step}, were "
            f"not finite, so nothing is learned any more; {state}. Look at loss and grad_norm before "
            f"step {good + 1} in metrics.jsonl: where they rise, go on from an earlier checkpoint with "
            f"a lower rate (`maxlm checkpoints list {self._run}`, then --branch-from, "
            "optimizer.learning_rate=…, optimizer.clip_norm=1); where they do not, try "
            "train.precision=float32",
            weights_are_finite=finite,
        )
