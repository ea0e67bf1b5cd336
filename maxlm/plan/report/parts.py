"""A plan's memory and time split by kind, as every bar, legend and table shows them.

In come `Memory` and `StepTime`; out come named parts in a fixed order whose amounts add up to the
whole, and widths of bars that add up to what there is to fill.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from maxlm.plan.result import Memory, StepTime


@dataclass(frozen=True)
class Part:
    """One kind of a whole.

    Attributes:
        letter: what a bar without colours is drawn with.
        name: of the kind.
        amount: bytes or seconds.
        meaning: what is counted here, in a few words.
    """

    letter: str
    name: str
    amount: float
    meaning: str


def memory_parts(memory: Memory) -> list[Part]:
    """Bytes of one device by kind; they add up to `memory.total`."""
    return [
        Part("P", "parameters", memory.parameters, "master weights and variables"),
        Part("O", "optimizer", memory.optimizer, "the optimizer's state, averaged weights"),
        Part("G", "gradients", memory.gradients, "as far as they are alive at once"),
        Part("A", "activations", memory.activations, "kept for the backward pass"),
        Part("T", "temporaries", memory.temporaries, "the rest that the compiler allocates"),
        Part("X", "other", memory.other, "batch, outputs, the program itself"),
    ]


def time_parts(time: StepTime) -> list[Part]:
    """Seconds of a step by kind; they add up to `time.total`."""
    return [
        Part("M", "matmuls", time.matmuls, "matrix multiplications"),
        Part("K", "kernels", time.kernels, "attention and other hand-written kernels"),
        Part("E", "elementwise", time.elementwise, "everything else that computes"),
        Part("B", "blocking", time.blocking, "collectives during which nothing computes"),
        Part("X", "exposed", time.exposed, "what compute does not hide of the other collectives"),
    ]


def widths(amounts: Sequence[float], whole: float, available: int) -> list[int]:
    """Whole widths for `amounts`, nearest to their shares of `whole`.

    Args:
        amounts: none negative.
        whole: what `available` stands for, at least their sum.
        available: characters, or any other unit.

    Returns:
        As many widths; with what is left (`whole` less the amounts) they fill `available`, so they add
        up to it where the amounts add up to `whole`.
    """
    if whole <= 0:
        return [0] * len(amounts)
    # Differences of rounded running sums: no part is off by more than one, and nothing is lost.
    edges, running = [0], 0.0
    for amount in amounts:
        running += amount
        edges.append(min(available, round(available * running / whole)))
    return [end - start for start, end in itertools.pairwise(edges)]
