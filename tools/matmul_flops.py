"""FLOPs of the matmuls of a traced program, each as often as it runs: what is computed again counts.

Pallas kernels count nothing, for their insides are another machine's program.
"""

from __future__ import annotations

import math
from typing import Any


def matmul_flops(jaxpr: Any) -> int:
    """Multiply-adds times two of every `dot_general` in `jaxpr` and inside it.

    Of a conditional (a kernel's choice by platform, say) the dearest branch counts.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[d] for d in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * depth
        elif name == "cond":
            total += max(matmul_flops(_inner(branch)) for branch in params["branches"])
        elif name != "pallas_call":
            repeats = params.get("length", 1) if name == "scan" else 1
            inner = [_inner(value) for value in params.values()]
            total += repeats * sum(matmul_flops(part) for part in inner if part is not None)
    return total


def _inner(value: Any) -> Any:
    value = getattr(value, "jaxpr", value)
    return value if hasattr(value, "eqns") else None
