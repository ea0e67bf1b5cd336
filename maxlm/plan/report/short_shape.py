"""Shapes of a compiled program's results as people want to see them: without the compiler's layout."""

from __future__ import annotations


def short_shape(shape: str) -> str:
    """`bf16[2,8192]` of `bf16[2,8192]{1,0:T(8,128)(2,1)}`; also of tuples."""
    kept, depth = [], 0
    for character in shape:
        depth += character == "{"
        if not depth:
            kept.append(character)
        depth = max(0, depth - (character == "}"))
    return "".join(kept)
