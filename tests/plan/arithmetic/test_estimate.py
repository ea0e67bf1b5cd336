"""The plan by arithmetic: its FLOPs, bytes and order against what is known of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maxlm.config.expert_layers import layers_of
from maxlm.config.load import load_config
from maxlm.errors import ParallelError
from maxlm.kernels.grouped_matmul import megablox
from maxlm.model.count import count_matmul_parameters, train_flops_per_token
from maxlm.plan.arithmetic.attention_time import attention_time
from maxlm.plan.arithmetic.estimate import analytic_plan
from maxlm.plan.arithmetic.habits import GROUPED_ROWS
from maxlm.plan.arithmetic.job import job_of
from maxlm.plan.arithmetic.layer_work import layer_work
from maxlm.plan.arithmetic.links import bandwidth, torus_links
from maxlm.plan.pods import pods
from maxlm.plan.topology import parse_topology

BUDGET = ["train.duration=1000 steps"]
GOLDENS = Path(__file__).parents[1] / "goldens"
TPU_RUNS = sorted(name for name, topology in pods().items() if topology.chip.platform == "tpu")


def job(presets, overrides, topology):
    return job_of(load_config(presets, [*overrides, *BUDGET]), parse_topology(topology))


def llama(overrides=(), topology="v5p-128", batch=128):
    sizes = ["data.length=8192", f"data.batch_size={batch}"]
    return job(["models/llama3-8b", "hardware/v5p"], [*sizes, *overrides], topology)


def plan(overrides=(), topology="v5p-128", presets=("models/llama3-8b", "hardware/v5p")):
    sizes = ["data.length=8192", "data.batch_size=128", *BUDGET]
    return analytic_plan(load_config(list(presets), [*sizes, *overrides]), parse_topology(topology))


def test_mfu_is_model_flops_over_peak():
    found = plan()
    config = llama().config
    flops = train_flops_per_token(config.model, 8192) * 128 * 8192
    assert found.model_flops == flops
    assert found.mfu == pytest.approx(flops / (64 * 459e12 * found.time.total))


def test_a_step_is_compute_kernels_and_what_is_not_hidden():
    time = plan().time
    parts = time.matmuls + time.elementwise + time.kernels + time.blocking + time.exposed
    assert time.total == pytest.approx(parts)


@pytest.mark.parametrize(
    ("presets", "overrides"),
    [
        (["models/llama3-8b", "hardware/v5p"], ["parallel.fsdp=16", "parallel.tensor=4"]),
        (["models/gemma2-2b", "hardware/v5p"], ["parallel.fsdp=64"]),
        (["models/mixtral-8x7b", "hardware/v5p"], ["parallel.expert=8", "parallel.fsdp=8"]),
        (["models/llama3-8b", "hardware/v5p"], ["parallel.stage=4", "parallel.fsdp=16"]),
        (["models/deepseek-v3", "hardware/v5p"], ["parallel.expert=8", "parallel.fsdp=8"]),
        (["models/gpt-oss-20b", "hardware/v5p"], ["parallel.expert=8", "parallel.fsdp=8"]),
    ],
    ids=["tensor", "local layers", "experts", "stages", "latents", "sinks"],
)
def test_matmuls_of_all_devices_are_those_of_the_model(presets, overrides):
    given = ["parallel.replica=1", "data.length=4096", "data.batch_size=256", *overrides]
    found = job(presets, given, "v5p-128")
    model = found.model
    layers = sum(layer_work(found, layer).forward_flops for layer in layers_of(model))
    layers *= found.topology.num_devices / found.mesh["stage"]
    head = 2 * found.tokens_per_step * model.vocab_size * model.embed_dim
    expected = 2 * found.tokens_per_step * count_matmul_parameters(model)
    assert layers + head == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("policy", "factor"), [("none", 1.0), ("matmuls", 1.0), ("full", 1.19)])
def test_matmuls_that_run_again_are_as_many_as_counted_in_the_traced_program(policy, factor):
    """docs/memory.md: matmul FLOPs of llama3.2-1b over those of `none`, counted in its jaxpr."""
    sizes = ["data.length=2048", "data.batch_size=8", f"parallel.rematerialization={policy}"]
    found = job(["models/llama3.2-1b", "hardware/v5p"], [*sizes, "parallel.fsdp=1"], "v5p:1x1x1")
    works = [layer_work(found, layer) for layer in layers_of(found.model)]
    once = 3 * sum(work.forward_flops for work in works)
    once += 6 * found.tokens * found.model.vocab_size * found.model.embed_dim
    again = sum(matmul.flops for work in works for matmul in work.repeated)
    assert (once + again) / once == pytest.approx(factor, abs=5e-4)


def test_policies_that_keep_less_take_less_memory_and_more_time():
    plans = [
        plan([f"parallel.rematerialization={policy}"])
        for policy in ("none", "matmuls", "attention", "full")
    ]
    kept = [p.memory.activations for p in plans]
    assert kept == sorted(kept, reverse=True)
    work = [p.time.matmuls + p.time.kernels for p in plans]
    assert work == sorted(work)
    assert work[-1] > work[0]


def test_offloaded_activations_are_the_hosts():
    memory = plan(["parallel.rematerialization=offload_attention"]).memory
    kept = plan(["parallel.rematerialization=attention"]).memory
    assert memory.activations == 0
    assert memory.host == kept.activations


@pytest.mark.parametrize("name", TPU_RUNS)
def test_steps_of_shipped_runs_are_near_those_of_their_compiled_programs(name):
    golden = json.loads((GOLDENS / f"{name.removeprefix('runs/')}.json").read_text())
    compiled = golden["libtpu 0.0.52"]["step_seconds"]
    found = analytic_plan(load_config([name], []), pods()[name])
    assert found.time.total == pytest.approx(compiled, rel=0.12)


def test_a_ring_is_hidden_behind_attention_alone():
    """With 16 tokens a device keys travel longer than they are attended to."""
    ring = ["parallel.context_attention=ring", "parallel.rematerialization=full"]
    few = plan(["parallel.fsdp=16", "parallel.context=4", *ring]).time
    short = ["data.length=1024", "data.batch_size=1024"]
    many = plan(["parallel.fsdp=1", "parallel.context=64", *short, *ring]).time
    assert few.exposed == 0
    assert 0 < many.exposed < many.overlapped


def test_splash_costs_the_bundles_of_its_blocks():
    """32 heads × 8192 × 128 at block 1024: 36 blocks of a head are seen; two TensorCores share."""
    time = attention_time(llama(["parallel.fsdp=64", "parallel.replica=1"]), 8192)
    rows, cores, clock = 2, 2, 1.75e9
    blocks = 32 * 36 * rows
    assert time.forward == pytest.approx(6_110 * blocks / cores / clock)
    assert time.backward == pytest.approx(14_890 * blocks / cores / clock)


def test_a_window_skips_blocks():
    found = llama()
    whole, window = attention_time(found, 8192), attention_time(found, 1025)
    assert window.forward == pytest.approx(whole.forward * 15 / 36)  # 8 diagonal, 7 beside


@pytest.mark.parametrize(
    ("fsdp", "kind", "passes"), [(16, "reduce-scatter", 1), (64, "all-reduce", 2)]
)
def test_parameters_are_gathered_twice_and_gradients_added_up_once(fsdp, kind, passes):
    """Over all axes of the torus the compiler all-reduces (docs/memory.md)."""
    found = plan([f"parallel.fsdp={fsdp}", f"parallel.replica={64 // fsdp}"])
    model = llama().model
    matrices = count_matmul_parameters(model) - model.vocab_size * model.embed_dim
    once = 2 * matrices * (fsdp - 1) / fsdp
    sent = {c.name: c for c in found.collectives}
    gathers, gradients = sent["layers' parameters"], sent["layers' gradients"]
    assert (gathers.kind, gathers.axes, gathers.size) == ("all-gather", ("fsdp",), fsdp)
    assert gathers.wire_bytes == pytest.approx(2 * once)
    assert gradients.kind == kind
    assert gradients.wire_bytes == pytest.approx(passes * once)


def test_replicas_alone_send_float32_gradients_once_a_step():
    small = ("models/gpt2-124m", "hardware/v5e")
    options = ["parallel.fsdp=1", "parallel.replica=8", "train.accumulation=4", "data.length=1024"]
    found = plan(options, "v5e-8", small)
    sums = [c for c in found.collectives if c.name == "gradients of replicas"]
    assert {c.times for c in sums} == {1}
    assert {c.kind for c in found.collectives} == {"all-reduce"}


@pytest.mark.parametrize(
    ("context", "options", "numbers"),
    [
        (8, ["parallel.rematerialization=none"], 0),
        (8, ["parallel.rematerialization=full"], 0),  # all is sent again, by what runs again
        (8, [], 32),  # heads of outputs, for the gradient of the projection behind them
        (8, ["model.qk_norm=true"], 32 + 32 + 8),  # and of queries and keys, of which the norm's input is kept
        (16, [], 32 + 2 * 16),  # keys and values that go to two devices are kept as they come
    ],
)  # fmt: skip
def test_ulysses_sends_again_what_is_not_kept(context, options, numbers):
    mesh = [f"parallel.context={context}", "parallel.fsdp=4", "parallel.context_attention=ulysses"]
    found = {c.name: c for c in plan([*mesh, *options]).collectives}
    again = found.get("tokens for heads, again")
    rows, width, layers = 128 * context // 64, 128, 32
    sent = rows * 8192 / context * numbers * width * 2 * layers * (context - 1) / context
    assert (again.wire_bytes if again else 0) == pytest.approx(sent)


def test_slices_exchange_over_the_network_by_replicas_alone():
    found = plan(["parallel.replica=8", "parallel.fsdp=16"], "2xv5p-128")
    assert {c.axes for c in found.collectives if c.network} == {("replica",)}
    with pytest.raises(ParallelError, match="does not divide by the 2 slices"):
        plan(["parallel.replica=1", "parallel.fsdp=128"], "2xv5p-128")


def test_a_mesh_axis_lies_over_whole_axes_of_the_torus():
    found = llama(["parallel.fsdp=16", "parallel.replica=4"])
    assert torus_links(found, ("fsdp",)) == 2
    assert torus_links(found, ("replica",)) == 1
    assert torus_links(found, ("replica", "fsdp")) == 3
    assert bandwidth(found, ("fsdp",)) == (540e9, False)


def test_gpus_of_a_machine_share_its_network_cards():
    gpus = ["models/llama3-8b", "hardware/h100"]
    sizes = ["data.length=8192", "data.batch_size=128", "parallel.fsdp=8", "parallel.replica=8"]
    found = job(gpus, sizes, "h100x64")
    assert bandwidth(found, ("fsdp",)) == (450e9, False)
    assert bandwidth(found, ("replica",)) == (50e9, True)
    assert bandwidth(found, ("replica", "fsdp")) == (400e9, True)


def test_stages_idle_while_the_pipeline_fills():
    found = plan(["parallel.stage=4", "parallel.fsdp=16", "parallel.replica=1"])
    # 8 rows of a data shard in 8 microbatches: 11 ticks, 3 of them idle.
    layers = sum(o.seconds for o in found.operations if o.name.endswith("layers)"))
    assert found.time.bubble == pytest.approx(layers * 3 / 11)


def test_what_does_not_divide_is_refused_with_the_arithmetic():
    with pytest.raises(ParallelError, match="128 does not divide over 512"):
        llama(["parallel.fsdp=64", "parallel.replica=1", "train.accumulation=8"])


def test_gpus_are_said_to_be_unmeasured():
    options = ["parallel.fsdp=8", "parallel.replica=8"]
    found = plan(options, "h100x64", ("models/llama3-8b", "hardware/h100"))
    assert any("unmeasured" in note for note in found.notes)


@pytest.mark.parametrize(
    ("model", "rotates"), [("gpt2-124m", False), ("llama3-8b", True), ("deepseek-v2-lite", True)]
)
def test_rotations_are_counted_where_a_model_has_them(model, rotates):
    overrides = ["data.batch_size=128", "train.duration=100 steps"]
    config = load_config([f"models/{model}", "data/books", "hardware/v5p"], overrides)
    plan = analytic_plan(config, parse_topology("v5p-128"))
    assert any("rotation" in operation.name for operation in plan.operations) is rotates


@pytest.mark.parametrize(
    ("model", "policy", "passes"),
    [
        ("llama3-8b", "none", 2),
        ("llama3-8b", "matmuls", 2),  # the rotated queries are kept
        ("llama3-8b", "full", 3),
        ("qwen3-0.6b", "none", 2),
        ("qwen3-0.6b", "matmuls", 3),  # those before their norm are kept
    ],
)
def test_a_rotation_runs_again_where_its_result_is_not_kept(model, policy, passes):
    overrides = ["data.batch_size=128", "train.duration=100 steps"]
    overrides.append(f"parallel.rematerialization={policy}")
    config = load_config([f"models/{model}", "data/books", "hardware/v5p"], overrides)
    plan = analytic_plan(config, parse_topology("v5p-128"))
    (rotation,) = [o for o in plan.operations if "rotation" in o.name]
    assert rotation.times == passes * config.model.num_layers


def test_smaller_micro_batches_of_experts_visit_more_tiles():
    assert GROUPED_ROWS == megablox.ROWS
    presets = ["models/qwen3-30b-a3b", "data/books", "hardware/v5p"]

    def kernels(accumulation):
        overrides = ["data.batch_size=256", f"train.accumulation={accumulation}", *BUDGET]
        plan = analytic_plan(load_config(presets, overrides), parse_topology("v5p-128"))
        return sum(o.seconds for o in plan.operations if o.name.startswith("mlp"))

    # 2 rows of 4096 tokens to 8 of 128 experts: 512 each, and 255 more at its end; twice as many with half.
    rows, ends = 2 * 4096 * 8, 127 * GROUPED_ROWS
    assert kernels(2) / kernels(1) == pytest.approx((rows + ends) / (rows + ends / 2))
