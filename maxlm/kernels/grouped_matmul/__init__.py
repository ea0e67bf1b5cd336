"""Grouped matmul: rows sorted by group, each group multiplied with a matrix of its own.

Every implementation is a function `(x [M, K], weights [G, K, N], sizes [G]) -> [M, N]`: the first
`sizes[0]` rows of `x` with `weights[0]`, the next `sizes[1]` with `weights[1]` and so on. Rows past
the sum of the sizes may hold anything, NaN included, in `x`, in the result and in the gradient by
`x`, and nothing else depends on them: a mask behind a kernel is a pass over all rows. (What XLA
promises of such rows differs by backend, so `ragged_dot` does mask.) Differentiable by `x` and
`weights`; sums are taken in float32 or wider, the result has `x`'s dtype. Weights of 8 bits, as
generation may have them, are widened to that. `choose.py` picks one.
"""
