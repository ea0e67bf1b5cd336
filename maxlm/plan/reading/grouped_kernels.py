"""Seconds of a grouped matmul's kernel: its schedule × the tiles of rows that its groups visit.

In: the schedule of one block of its grid, whose size depends on how rows fall into groups; out: seconds of a call
where as many groups as can end inside tiles. A tile in which a group ends is computed once for each group
in it, whole. The kernels are JAX's megablox: `gmm` has the grid (columns, visits, depth), `tgmm`, which makes
the matrices' gradient, (columns, depth, visits).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from maxlm.errors import PlanError
from maxlm.parallel.chips import Chip
from maxlm.plan.reading.kernels import KernelCall

HOW = "their own schedules × the tiles that their groups visit, at least the matrix unit's time"


def is_grouped(call: KernelCall) -> bool:
    """Whether a call multiplies rows with a matrix of their group."""
    return "gmm" in call.name


def grouped_seconds(
    bundles: int,
    grid: Sequence[int],
    windows: Sequence[Sequence[int]],
    call: KernelCall,
    chip: Chip,
) -> float:
    """Of one call.

    Args:
        bundles: scheduled of one block.
        grid: blocks along each dim; below 0 where that depends on the groups.
        windows: what a block sees of each operand and result.
        call: of the kernel.
        chip: that runs it.

    Raises:
        PlanError: it is none of the two kernels, by its grid or what its blocks see.
    """
    assert chip.clock
    if len(grid) != 3 or len(windows) != 3 or len(windows[0]) != 2:
        raise PlanError(f"not scheduled: {call.name} is no grouped matmul that is known")
    floats = [a for a in (*call.operands, *call.results) if a.dtype in ("bf16", "f32", "f16")]
    left, right = floats[:2]
    is_gradient = "tgmm" in call.name
    groups = next(a.dims[0] for a in floats if len(a.dims) == 3)
    (rows, depth), columns = windows[0], windows[-1][-1]
    visits = -(-left.dims[0] // rows) + groups - 1
    # Only tiles of columns are divided among TensorCores.
    sizes = [size if size > 0 else visits for size in grid]
    blocks = -(-sizes[0] // chip.cores) * math.prod(sizes[1:])
    tiles_of_depth = grid[1] if is_gradient else grid[2]
    # The code has its matmul twice where a sum goes over several tiles: with and without the end.
    copies = 2 if tiles_of_depth > 1 and not is_gradient else 1
    by_unit = 2.0 * rows * depth * columns * chip.cores * chip.clock / chip.peak
    seconds = blocks * max(bundles / copies, by_unit) / chip.clock
    # Rows are read again for every tile of columns (of depth); matrices stay, unless they have several tiles of depth.
    moved: float = call.moved_bytes + (sizes[0] - 1) * left.bytes
    if is_gradient:
        moved += (tiles_of_depth - 1) * right.bytes
    elif tiles_of_depth > 1:
        moved += (visits / groups - 1) * right.bytes
    return max(seconds, moved / chip.memory_bandwidth)
