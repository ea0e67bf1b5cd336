"""A run of a mixture of experts: killed, gone on with on another mesh, read back, generated with."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from maxlm.errors import CheckpointError, ParallelError
from maxlm.train.checkpoints import Checkpoints
from maxlm.train.loading import load
from maxlm.train.sinks import read_metrics
from tests.cases import campaign
from tests.generate.models import continued
from tests.small_run import (
    checksums,
    devices,
    losses,
    train_here,
    write_quick_config,
    write_text_store,
)

MODEL = {
    "num_layers": 2,
    "num_experts": 4,
    "expert_mlp_dim": 24,
    "dense_layers": 1,
    "router_bias_rate": 0.002,
    "load_balance_loss": 0.001,
}
BIAS = "segments.1.blocks.0.mlp.router.bias"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    store = write_text_store(folder / "store", 20_000)
    return write_quick_config(folder / "one", store, model=MODEL, logging={"every": "1 steps"})


@pytest.fixture(scope="module")
def unbroken(config):
    return train_here(config)


def test_records_say_how_even_the_load_was(unbroken):
    records = [r for r in read_metrics(unbroken.path) if r["kind"] == "train"]
    for record in records:
        assert 0 <= record["expert_load_min"] < 1 < record["expert_load_max"] < 4
        assert 0.9 < record["load_balance_loss"] < 4
        assert record["router_z_loss"] > 0 and record["dropped_fraction"] == 0
    assert records[-1]["loss"] < records[0]["loss"]


def test_the_biases_of_a_checkpoint_are_those_that_the_steps_moved(unbroken):
    names = [n for n in Checkpoints(unbroken.checkpoints).describe(20) if "variables" in n]
    assert names == [f"variables.{BIAS}"]
    with devices(1):
        bias = np.asarray(load(f"{unbroken.path}@20").params[BIAS])
    assert bias.shape == (1, 4)
    # Twenty steps of ±0.002 or none.
    steps = bias / 0.002
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
    assert 0 < np.abs(steps).max() <= 20


def test_a_killed_run_goes_on_to_the_same_bits(config, unbroken):
    train_here(config, "name=killed", stop_at=11)
    run = train_here(config, "name=killed")
    assert checksums(run) == checksums(unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, campaign(2)])
def test_it_goes_on_where_experts_lie_over_devices(config, unbroken, tensor):
    name = f"name=moved-{tensor}"
    train_here(config, name, stop_at=11)
    mesh = ["parallel.expert=2", f"parallel.tensor={tensor}", "parallel.fsdp=1"]
    run = train_here(config, name, *mesh, on=2 * tensor)
    before, after = losses(unbroken), losses(run)
    np.testing.assert_allclose([after[s] for s in before], list(before.values()), rtol=1e-5)


def test_generation_with_the_cache_equals_reading_everything_again(unbroken):
    with devices(1):
        trained = load(unbroken.path)
        prompts = [list(b"ROMEO:"), list(b"What say you to ")]
        drawn = continued(trained.model, trained.params, prompts, 10)
        for prompt, tokens in zip(prompts, drawn, strict=True):
            text = [*prompt, *tokens]
            logits = _logits(trained, text)
            again = logits[len(prompt) - 1 : -1].argmax(-1)
            np.testing.assert_array_equal(tokens, again)


@pytest.mark.campaign
def test_generation_on_a_mesh_that_the_prompts_do_not_divide_over(unbroken):
    prompts = [list(b"ROMEO:")] * 3  # over four rows of devices

    def drawn(count, *overrides):
        with devices(count):
            trained = load(unbroken.path, list(overrides))
            return continued(trained.model, trained.params, prompts, 6)

    assert drawn(1) == drawn(4, "parallel.expert=2", "parallel.fsdp=2")


def test_a_mesh_that_the_experts_do_not_divide_over_is_refused(unbroken):
    with devices(8), pytest.raises(ParallelError, match="experts dim of 4 does not divide over 8"):
        load(unbroken.path, ["parallel.expert=-1", "parallel.fsdp=1"])


def test_weights_without_biases_are_refused_where_there_are_some(config, unbroken):
    plain = train_here(config, "name=plain", "model.router_bias_rate=null", "train.duration=8")
    with pytest.raises(CheckpointError, match=BIAS.replace(".", r"\.")):
        train_here(config, "name=from_plain", f"train.init_from={plain.path}")


def _logits(trained, text):
    from maxlm.batch import Batch

    tokens = np.array([text], np.int32)
    ones = np.ones_like(tokens)
    positions = np.arange(len(text), dtype=np.int32)[None]
    batch = Batch(tokens, tokens, ones.astype(np.float32), ones, positions)
    return np.asarray(jax.jit(lambda p, b: trained.model.bind(p).logits(b))(trained.params, batch))[
        0
    ]
