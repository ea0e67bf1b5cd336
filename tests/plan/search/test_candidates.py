"""Which layouts a search considers."""

from __future__ import annotations

import math

import pytest

from maxlm.config.choices import Rematerialization
from maxlm.config.load import load_config
from maxlm.config.mesh_axes import DATA_AXES
from maxlm.errors import ConfigError
from maxlm.plan.arithmetic.habits import REDUCE_SCATTER_OPTION
from maxlm.plan.search.candidates import (
    MEMORY_MARGIN,
    Space,
    find_candidates,
    mesh_shapes,
    with_settings,
)
from maxlm.plan.topology import parse_topology

SMALL = [
    "model.num_layers=4",
    "model.embed_dim=512",
    "model.num_heads=4",
    "model.vocab_size=8192",
    "data.length=512",
    "data.batch_size=64",
    "train.duration=1000 steps",
]
EXPERTS = [*SMALL, "model.num_experts=4", "model.embed_dim=128"]


def small(options=(), topology="v5e-8", **space):
    config = load_config(["hardware/v5e"], [*SMALL, *options])
    return find_candidates(config, parse_topology(topology), Space(**space))


def test_shapes_are_every_ordered_factorisation():
    shapes = list(mesh_shapes(8, ("replica", "fsdp", "tensor")))
    assert len(shapes) == 10  # 2^3 into three places: 5 choose 2
    assert all(math.prod(shape.values()) == 8 for shape in shapes)
    assert len({tuple(shape.values()) for shape in shapes}) == 10


def test_an_axis_divides_what_it_splits():
    assert {s["tensor"] for s in mesh_shapes(8, ("fsdp", "tensor"), {"tensor": 4})} == {1, 2, 4}
    assert {s["stage"] for s in mesh_shapes(12, ("fsdp", "stage"), {"stage": 9})} == {1, 3}


def test_every_candidate_divides_and_keeps_the_batch():
    found = small()
    assert 0 < len(found.fitting) <= found.divided < found.considered
    for candidate in found.fitting:
        config, mesh = candidate.config, candidate.settings
        assert math.prod(mesh[f"parallel.{a}"] for a in candidate.analytic.mesh) == 8
        assert (config.data.batch_size, config.data.length) == (64, 512)
        shards = math.prod(mesh[f"parallel.{a}"] for a in DATA_AXES)
        assert 64 % (shards * config.train.accumulation) == 0


def test_all_six_axes_are_tried_where_the_model_has_them():
    def tried(candidates):
        return {axis for c in candidates.fitting for axis in c.analytic.mesh}

    assert tried(small()) == {"replica", "stage", "fsdp", "context", "tensor"}
    with_experts = load_config(["hardware/v5e"], EXPERTS)
    found = find_candidates(with_experts, parse_topology("v5e-8"), Space(accumulations=(1,)))
    assert "expert" in tried(found)


@pytest.mark.parametrize(
    ("options", "mesh", "policy"),
    [
        ([], {"fsdp": 8}, "full"),  # as hardware/v5e has it
        (["parallel.fsdp=2", "parallel.replica=-1"], {"replica": 4, "fsdp": 2}, "full"),
        (
            ["parallel.rematerialization=attention", "train.accumulation=2"],
            {"fsdp": 8},
            "attention",
        ),
    ],
)
def test_the_configs_own_layout_is_one_of_them(options, mesh, policy):
    (given,) = [c for c in small(options).fitting if c.is_given]
    assert given.analytic.mesh == mesh
    assert given.settings["parallel.rematerialization"] == policy
    assert not given.adds_options
    assert given.label.endswith("as given")


@pytest.mark.parametrize("option", ["parallel.fsdp=3", "parallel.rematerialization=offload_inputs"])
def test_none_is_where_the_configs_own_does_not_divide_or_is_not_searched(option):
    assert not any(c.is_given for c in small([option]).fitting)


def test_of_varied_values_the_configs_own_is_the_given_one():
    found = small(["train.loss_chunk=1024"], vary={"train.loss_chunk": [512, 1024]})
    (given,) = [c for c in found.fitting if c.is_given]
    assert given.settings["train.loss_chunk"] == 1024


def test_micro_batches_that_a_batch_does_not_divide_into_are_left_out():
    found = small(["data.batch_size=24"], accumulations=(1, 3, 5, 16))
    assert {c.settings["train.accumulation"] for c in found.fitting} == {1, 3}


def test_the_fastest_by_arithmetic_comes_first():
    seconds = [candidate.seconds for candidate in small().fitting]
    assert seconds == sorted(seconds)


def test_only_replicas_go_across_slices():
    found = small(topology="2xv5e-4", accumulations=(1,))
    assert {c.settings["parallel.replica"] % 2 for c in found.fitting} == {0}


def test_policies_that_offload_are_tried_only_when_asked_for():
    assert not any("offload" in c.label for c in small(accumulations=(1,)).fitting)
    asked = small(policies=(Rematerialization.OFFLOAD_INPUTS,), accumulations=(1,))
    assert asked.fitting


def test_what_cannot_fit_is_left_out_and_the_smallest_is_known():
    options = ["model.num_layers=32", "model.embed_dim=8192", "model.num_heads=64"]
    found = small(options, accumulations=(1,))
    assert found.fitting == []
    assert found.smallest is not None
    memory = found.smallest.analytic.memory
    assert memory.total > MEMORY_MARGIN * memory.capacity


def test_compiler_options_are_tried_beside_those_of_the_config():
    options = ["data.batch_size=8", "data.length=2048", SMALL[-1]]

    def tried(presets):
        config = load_config(presets, [*options, "train.precision=bfloat16"])
        space = Space(accumulations=(1,))
        found = find_candidates(config, parse_topology("v5p:2x2x1"), space).fitting
        return {c.config.parallel.compiler_options.get(REDUCE_SCATTER_OPTION) for c in found}

    assert tried(["models/llama3.2-1b"]) == {None, True}
    off = f"parallel.compiler_options.{REDUCE_SCATTER_OPTION}=false"
    options.append(off)
    assert tried(["models/llama3.2-1b", "hardware/v5p"]) == {False}


def test_any_option_can_be_varied_and_one_that_is_none_is_refused():
    found = small(vary={"train.loss_chunk": [512, 1024]}, accumulations=(1,))
    assert {c.config.train.loss_chunk for c in found.fitting} == {512, 1024}
    with pytest.raises(ConfigError, match=r"train\.chunk: no such option"):
        small(vary={"train.chunk": [1]})


def test_settings_leave_the_rest_of_a_config_as_it_is():
    config = load_config(["hardware/v5e"], SMALL)
    varied = with_settings(config, {"parallel.fsdp": 4, "parallel.replica": 2})
    assert (varied.parallel.fsdp, varied.parallel.replica) == (4, 2)
    assert varied.model == config.model
    assert config.parallel.fsdp == -1
