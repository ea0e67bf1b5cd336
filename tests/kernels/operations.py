"""Counts of the operations in a traced program."""

from collections import Counter

import jax


def operations(jaxpr):
    """How often a traced program and what it calls have each operation."""
    counts = Counter(equation.primitive.name for equation in jaxpr.eqns)
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                counts += operations(inner)
    return counts
