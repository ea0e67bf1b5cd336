"""Which layers and rows go where, and what is refused."""

import jax
import numpy as np
import pytest

from maxlm.config.schema import ModelConfig, ParallelConfig
from maxlm.errors import ParallelError
from maxlm.model.decoder import Execution
from maxlm.model.definition import define
from maxlm.parallel.mesh import make_mesh
from maxlm.parallel.stages import Stages, check_microbatches, stages_of


def test_a_stage_holds_every_so_many_pieces_of_consecutive_layers():
    stages, layers = Stages(2, rounds=3), np.arange(12)
    held = np.asarray(stages.to_stage_order(layers)).reshape(2, 6)
    assert held.tolist() == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]


@pytest.mark.parametrize(("count", "rounds"), [(2, 1), (2, 3), (3, 2), (4, 4)])
def test_the_order_of_layers_comes_back(count, rounds):
    stages = Stages(count, rounds)
    layers = np.random.default_rng(0).normal(size=(count * rounds * 2, 3))
    back = stages.to_layer_order(stages.to_stage_order(layers))
    np.testing.assert_array_equal(back, layers)
    if rounds == 1:  # nothing has to move at a save
        assert stages.to_stage_order(layers) is layers


def test_the_bubble_is_what_a_stage_waits_for_the_others():
    assert Stages(4).bubble(4) == pytest.approx(3 / 7)
    assert Stages(4).bubble(16) == pytest.approx(3 / 19)
    assert Stages(4, rounds=2).bubble(16) == pytest.approx(3 / 35)


def test_microbatches_are_four_a_stage_where_the_rows_allow():
    assert [Stages(2).microbatches_of(rows) for rows in (16, 8, 12, 4, 2, 10)] == [8, 8, 6, 4, 2, 2]
    assert Stages(2, microbatches=4).microbatches_of(16) == 4
    # An evaluation's batch need not be the run's.
    assert Stages(2, microbatches=4).microbatches_of(6) == 6
    with pytest.raises(ParallelError, match=r"7 rows .* for 2 stages: nearest are 6 or 8"):
        Stages(2).microbatches_of(7)


def test_a_mesh_of_one_stage_has_no_pipeline():
    config = ParallelConfig(stage=-1, fsdp=2, pipeline_rounds=3, microbatches=8)
    assert stages_of(config, make_mesh(config)) == Stages(4, 3, 8)
    assert stages_of(config, make_mesh(config, jax.devices()[:2])) is None


@pytest.mark.parametrize(
    ("stages", "model", "message"),
    [
        (
            Stages(4),
            {"num_layers": 6},
            r"6 layers do not divide over 4 stages × 1 round = 4 pieces: use 4 or 8 layers, or "
            r"stages × rounds of 3 or 6",
        ),
        (
            Stages(2, rounds=3),
            {"num_layers": 8},
            r"8 layers do not divide over 2 stages × 3 rounds = 6 pieces: use 6 or 12 layers, or "
            r"stages × rounds of 4 or 8",
        ),
        (
            Stages(2),
            {"num_layers": 6, "attention_pattern": ["local", "global"], "attention_window": 4},
            r"6 layers = 3 repeats of a pattern of 2 do not divide .* use 4 or 8 layers, or "
            r"stages × rounds of 1 or 3",
        ),
    ],
)
def test_layers_that_do_not_divide_show_the_arithmetic(stages, model, message):
    sizes = {"vocab_size": 64, "embed_dim": 16, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8}
    config = ModelConfig(**sizes, mlp_dim=32, **model)
    with pytest.raises(ParallelError, match=message):
        define(config, Execution(stages=stages))


@pytest.mark.parametrize(
    ("microbatches", "batch_size", "accumulation", "message"),
    [
        (None, 20, 1, r"batch 20 .* over 2 shards \(fsdp 2\) × 4 microbatches for 4 stages: .* 16 or 24"),
        (None, 8, 2, r"batch 8 .* 4 shards \(fsdp 2 × accumulation 2\) × 4 .* nearest are 16"),
        (8, 24, 1, r"batch 24 .* × 8 microbatches for 4 stages: nearest are 16 or 32"),
        (6, 24, 1, r"parallel.microbatches 6 is no multiple of the 4 stages: nearest are 4 or 8"),
    ],
)  # fmt: skip
def test_rows_that_do_not_divide_show_the_arithmetic(
    microbatches, batch_size, accumulation, message
):
    mesh = make_mesh(ParallelConfig(stage=4, fsdp=2))
    with pytest.raises(ParallelError, match=message):
        check_microbatches(
            Stages(4, microbatches=microbatches), batch_size, mesh, accumulation=accumulation
        )


def test_rows_that_divide_say_into_how_many_microbatches():
    mesh = make_mesh(ParallelConfig(stage=4, fsdp=2))
    assert check_microbatches(Stages(4), 32, mesh) == 16
    assert check_microbatches(Stages(4), 32, mesh, accumulation=2) == 8
    assert check_microbatches(Stages(4, microbatches=4), 32, mesh) == 4
