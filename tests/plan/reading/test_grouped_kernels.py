"""Grouped matmuls: the tiles that groups visit, on one and on two TensorCores."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from maxlm.errors import PlanError
from maxlm.kernels.grouped_matmul import megablox
from maxlm.parallel.chips import CHIPS
from maxlm.plan.reading.grouped_kernels import HOW, grouped_seconds
from maxlm.plan.reading.kernels import KernelCall
from maxlm.plan.reading.read import read_program
from maxlm.plan.reading.shapes import Array
from maxlm.plan.topology import parse_topology

ROWS, DEPTH, COLUMNS, GROUPS = 8192, 1024, 512, 8
VISITS = ROWS // 256 + GROUPS - 1
UNKNOWN = -(2**63)
ROWS_ARRAY = Array("bf16", (ROWS, DEPTH))
MATRICES = Array("bf16", (GROUPS, DEPTH, COLUMNS))
WINDOWS = [[256, DEPTH], [1, DEPTH, 256], [256, 256]]


def call(name="gmm", operands=(ROWS_ARRAY, MATRICES), result=(ROWS, COLUMNS), moved=0):
    bound, sizes = Array("s32", ()), Array("s32", (GROUPS + 1,))
    results = (Array("bf16", result),)
    return KernelCall(name, (bound, sizes, *operands), results, moved, "{}", None, False)


@pytest.mark.parametrize(
    ("chip", "columns", "in_turn"),
    [("v5e", 2, 2), ("v5p", 2, 1), ("v5p", 1, 1), ("v5p", 3, 2)],
)
def test_every_end_of_a_group_inside_a_tile_is_a_visit_more(chip, columns, in_turn):
    found = grouped_seconds(50_000, (columns, UNKNOWN, 1), WINDOWS, call(), CHIPS[chip])
    assert found == pytest.approx(50_000 * in_turn * VISITS / CHIPS[chip].clock)


def test_the_matrix_unit_takes_its_time_whatever_the_schedule():
    chip = CHIPS["v5e"]
    found = grouped_seconds(10, (2, UNKNOWN, 1), WINDOWS, call(), chip)
    assert found == pytest.approx(2.0 * 256 * DEPTH * 256 * 2 * VISITS / chip.peak)


def test_the_code_of_a_sum_over_several_tiles_has_its_matmul_twice():
    grid, windows = (1, UNKNOWN, 4), [[256, 256], [1, 256, COLUMNS], [256, COLUMNS]]
    found = grouped_seconds(60_000, grid, windows, call(), CHIPS["v5e"])
    assert found == pytest.approx(30_000 * 4 * VISITS / CHIPS["v5e"].clock)


def test_the_gradient_of_the_matrices_visits_as_many():
    operands = (ROWS_ARRAY, Array("bf16", (ROWS, COLUMNS)))
    gradient = call("transpose_jvp_jit_tgmm", operands, MATRICES.dims)
    windows = [[256, DEPTH], [256, 256], [1, DEPTH, 256]]
    found = grouped_seconds(50_000, (2, 1, UNKNOWN), windows, gradient, CHIPS["v5e"])
    assert found == pytest.approx(50_000 * 2 * VISITS / CHIPS["v5e"].clock)


def test_rows_are_read_for_every_tile_of_columns():
    chip, moved = CHIPS["v5e"], 10**9
    found = grouped_seconds(1, (4, UNKNOWN, 1), WINDOWS, call(moved=moved), chip)
    assert found == pytest.approx((moved + 3 * ROWS_ARRAY.bytes) / chip.memory_bandwidth)


def test_a_matrix_with_several_tiles_of_depth_is_read_at_every_visit():
    grid, windows = (1, UNKNOWN, 4), [[256, 256], [1, 256, COLUMNS], [256, COLUMNS]]
    chip, moved = CHIPS["v5e"], 10**9
    found = grouped_seconds(1, grid, windows, call(moved=moved), chip)
    again = (VISITS / GROUPS - 1) * MATRICES.bytes
    assert found == pytest.approx((moved + again) / chip.memory_bandwidth)


def test_another_kernel_of_that_name_is_not_taken_for_one():
    with pytest.raises(PlanError, match="gmm is no grouped matmul that is known"):
        grouped_seconds(1, (4, UNKNOWN), WINDOWS, call(), CHIPS["v5e"])


@pytest.mark.slow
def test_a_real_grouped_matmul_is_scheduled(tmp_path, monkeypatch):
    """On v5p, whose TensorCores share the tiles of columns: its matmuls and what ends of groups add."""
    pytest.importorskip("libtpu", reason="the TPU compiler comes with jax[tpu]")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    topology = parse_topology("v5p-8")
    place = SingleDeviceSharding(topology.devices()[0])
    shapes = [
        jax.ShapeDtypeStruct(dims, dtype, sharding=place)
        for dims, dtype in [
            (ROWS_ARRAY.dims, jnp.bfloat16),
            (MATRICES.dims, jnp.bfloat16),
            ((GROUPS,), jnp.int32),
        ]
    ]
    program = jax.jit(megablox.megablox).lower(*shapes).compile()
    reading = read_program(program.as_text(), chip=topology.chip)
    (kernel,) = [o for o in reading.operations if o.kind == "kernel"]
    visited = 2.0 * VISITS * 256 * DEPTH * COLUMNS / topology.chip.peak
    assert visited <= kernel.seconds < 1.5 * visited
    assert any(HOW in note for note in reading.notes)
