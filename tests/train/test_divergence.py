"""A run in which every step is skipped ends, and keeps what was good."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.errors import DivergedError
from maxlm.train import jitted_step
from maxlm.train.checkpoints import Checkpoints
from maxlm.train.divergence import MOST_SKIPPED_IN_A_ROW, Divergence
from maxlm.train.run_folder import RunFolder
from maxlm.train.sinks import read_metrics
from maxlm.train.step import StepMetrics, make_train_step
from tests.small_run import call, checksums, write_quick_config, write_text_store

GOOD = 8


@pytest.fixture
def config(tmp_path):
    store = write_text_store(tmp_path / "store", 30_000)
    return write_quick_config(
        tmp_path / "run",
        store,
        train={"duration": "60 steps"},
        eval={"sets": {}},
        checkpoint={"keep_last": 20},
    )


@pytest.fixture
def run(tmp_path):
    return RunFolder(str(tmp_path / "run" / "runs" / "small"))


def broken_from(first):
    """A train step like any other, whose targets weigh NaN from a step on."""

    def make(*arguments, **options):
        step = make_train_step(*arguments, **options)

        def broken(state, batch):
            weights = jnp.where(state.step >= first, jnp.nan, batch.loss_weights)
            return step(state, batch._replace(loss_weights=weights))

        return broken

    return make


def weights(run, step):
    return {n: c for n, c in checksums(run, step).items() if n not in ("step", "skipped")}


def test_a_run_whose_every_step_is_skipped_ends_with_the_good_weights_saved(
    config, run, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        patch.setattr(jitted_step, "make_train_step", broken_from(GOOD))
        assert call("train", str(config), "--plain") == 2
    said = capsys.readouterr().err
    assert f"the gradients of the last {MOST_SKIPPED_IN_A_ROW} steps, up to step 28" in said
    assert f"the weights of step {GOOD}" in said and "Traceback" not in said
    assert read_metrics(run.path)[-1]["reason"] == "failed"
    newest = Checkpoints(run.checkpoints).steps()[-1]
    assert 28 <= newest < 60
    assert weights(run, newest) == weights(run, GOOD)
    assert call("train", str(config), "--plain") == 0  # and it can go on from them
    assert read_metrics(run.path)[-1]["reason"] == "finished"
    assert weights(run, 60) != weights(run, newest)


def test_weights_that_are_not_finite_are_not_saved(config, run, monkeypatch, capsys):
    def make(*arguments, **options):
        step = make_train_step(*arguments, **options)

        def broken(state, batch):
            new, metrics = step(state, batch)
            lost = state.step >= GOOD
            params = {n: jnp.where(lost, jnp.nan, p) for n, p in new.params.items()}
            norm = jnp.where(lost, jnp.nan, metrics.param_norm)
            return new._replace(params=params), metrics._replace(param_norm=norm)

        return broken

    monkeypatch.setattr(jitted_step, "make_train_step", make)
    code = call("train", str(config), "--plain", "checkpoint.every=40 steps")
    assert code == 2
    assert "the weights themselves are not finite any more" in capsys.readouterr().err
    assert Checkpoints(run.checkpoints).steps() == []


def window(*grad_norms):
    zero = np.float32(0)
    return [StepMetrics(zero, zero, zero, np.float32(g), zero, zero, zero) for g in grad_norms]


def test_only_steps_in_a_row_count_over_the_borders_of_windows():
    watch = Divergence("runs/x").watch
    bad, most = [np.nan], MOST_SKIPPED_IN_A_ROW
    for first in range(0, 1000, 100):  # every other step, and a long row that ends in time
        watch(first + 99, window(*([np.inf, 1.0] * 10), *(bad * (most - 1)), 1.0))
    watch(1010, window(1.0, *(bad * (most - 1))))
    with pytest.raises(DivergedError, match=r"up to step 1011, .* the weights of step 991"):
        watch(1011, window(*bad))
