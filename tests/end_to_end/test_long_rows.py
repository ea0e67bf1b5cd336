"""A run whose rows lie over several devices: trained, evaluated and sampled as on one."""

import pytest

from tests.small_run import (
    call,
    losses,
    read_metrics,
    train_here,
    write_quick_config,
    write_text_store,
)

pytestmark = pytest.mark.slow  # compiles training, evaluation and sampling twice


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long_rows")
    store = write_text_store(folder / "store")
    eval_section = {"every": "8 steps", "prompts": ["ROMEO:"], "sample_tokens": 4}

    def train(name, on, **parallel):
        config = write_quick_config(
            folder / name, store, name=name, parallel=parallel, eval=eval_section
        )
        return train_here(config, on=on)

    one = train("one", 1)
    ring = train("ring", 4, context=2, context_attention="ring")
    return one, ring


def test_losses_and_evaluations_equal_those_of_one_device(runs):
    one, ring = runs
    wanted = losses(one)
    assert losses(ring) == pytest.approx(wanted, rel=1e-5)
    evaluations = [
        [r["loss"] for r in read_metrics(run.path) if r["kind"] == "eval"] for run in runs
    ]
    assert evaluations[1] == pytest.approx(evaluations[0], rel=1e-5) and evaluations[0]


def test_samples_are_drawn_on_the_mesh(runs):
    samples = [[r["text"] for r in read_metrics(run.path) if r["kind"] == "sample"] for run in runs]
    assert samples[1] == samples[0] and samples[0]


def test_an_evaluation_length_that_does_not_divide_is_refused_on_the_mesh_asked_for(runs, capsys):
    _, ring = runs
    length = "eval.sets.validation.length=30"
    assert call("eval", ring.path, length, on=4) == 0  # on another mesh than the run's
    assert call("eval", ring.path, length, "parallel.context=2", on=4) == 2
    assert "length 30 does not divide by 4 (context 2" in capsys.readouterr().err
