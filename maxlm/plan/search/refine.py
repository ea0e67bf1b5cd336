"""Correcting a ranking by arithmetic with what the compiler says of a few of its members.

In: candidates and the compiled plans of some; out: for the others an estimate, and a bound that a step
of theirs is not expected to beat. What arithmetic gets wrong depends on the mesh (which collectives
the compiler makes of its axes), so a ratio compiled ÷ arithmetic is carried to candidates of the same
mesh first, then to those with the same axes, then to all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from maxlm.config.mesh_axes import MESH_AXES
from maxlm.plan.result import Plan
from maxlm.plan.search.candidates import Candidate

# By how much a candidate may do better than the best ratio of its class: of the same mesh, and of the same
# axes. Where none of its axes' class was compiled, than arithmetic itself, or the best ratio of any: in
# the table of a small job (docs/search.md) ratios of classes lie between 0.8 and 1.3.
_SLACK = (0.95, 0.9, 0.8)
# By how much less memory it may need than the best ratio of its class says.
_SLACK_OF_MEMORY = (0.98, 0.95, 0.9)


@dataclass(frozen=True)
class Outlook:
    """What is expected of a candidate that is not compiled.

    Attributes:
        seconds: of a step.
        bound: seconds that it is not expected to beat.
        bytes: of memory at the peak, at least.
    """

    seconds: float
    bound: float
    bytes: float


class Corrections:
    """The ratios that were measured."""

    def __init__(self) -> None:
        self._seconds: list[tuple[Candidate, float]] = []
        self._bytes: list[tuple[Candidate, float]] = []

    def add(self, candidate: Candidate, compiled: Plan) -> None:
        """Take in a compiled plan; one that the compiler refused tells of memory at most."""
        analytic = candidate.analytic
        if compiled.time is not None:
            self._seconds.append((candidate, compiled.time.total / candidate.seconds))
        if compiled.memory is not None and analytic.memory is not None:
            self._bytes.append((candidate, compiled.memory.total / analytic.memory.total))

    def outlook(self, candidate: Candidate) -> Outlook:
        """What is expected of a candidate."""
        ratios, level = _of_class(candidate, self._seconds)
        typical = _mean(ratios) if ratios else 1.0
        # Without any measurement nothing bounds it.
        least = min(ratios, default=0.0)
        if ratios and level == len(_SLACK) - 1:
            least = min(least, 1.0)
        least *= _SLACK[level]
        memory, level = _of_class(candidate, self._bytes)
        assert candidate.analytic.memory
        needed = (
            candidate.analytic.memory.total * min(memory, default=1.0) * _SLACK_OF_MEMORY[level]
        )
        return Outlook(candidate.seconds * typical, candidate.seconds * least, needed)

    def errors(self) -> dict[str, tuple[float, float, float]]:
        """Of seconds and bytes: mean ratio compiled ÷ arithmetic, and the least and largest."""
        found = {}
        for name, measured in (("step time", self._seconds), ("memory", self._bytes)):
            ratios = [ratio for _, ratio in measured]
            if ratios:
                found[name] = (_mean(ratios), min(ratios), max(ratios))
        return found


def _of_class(
    candidate: Candidate, measured: list[tuple[Candidate, float]]
) -> tuple[list[float], int]:
    """Ratios of the nearest class that has any, and how near it is (0: the same mesh)."""
    near: list[Callable[[Candidate], object]] = [_mesh, _axes, lambda other: None]
    for level, key in enumerate(near):
        wanted = key(candidate)
        ratios = [ratio for other, ratio in measured if key(other) == wanted]
        if ratios:
            return ratios, level
    return [], len(near) - 1


def _mesh(candidate: Candidate) -> tuple[object, ...]:
    # What overlaps and what is scattered depends on options of the compiler, too.
    options = candidate.settings["parallel.compiler_options"]
    return (*(candidate.settings[f"parallel.{axis}"] for axis in MESH_AXES), str(options))


def _axes(candidate: Candidate) -> tuple[bool, ...]:
    return tuple(candidate.settings[f"parallel.{axis}"] > 1 for axis in MESH_AXES)


def _mean(ratios: list[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))
