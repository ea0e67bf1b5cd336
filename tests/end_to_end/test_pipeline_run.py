"""A run in the stages of a pipeline: told at the start, killed, continued without stages, used."""

import json

import numpy as np
import pytest

from maxlm.train.sinks import read_metrics
from tests.cases import campaign
from tests.small_run import (
    call,
    checksums,
    losses,
    train_here,
    write_quick_config,
    write_text_store,
)

STAGES = ["parallel.stage=2", "parallel.fsdp=1", "parallel.pipeline_rounds=2"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_text_store(tmp_path_factory.mktemp("text") / "store")


def config(folder, store):
    return write_quick_config(
        folder,
        store,
        model={"num_layers": 4},
        data={"batch_size": 16},
        eval={"every": "8 steps", "prompts": ["ROMEO:"], "sample_tokens": 3},
    )


def evaluations(run):
    return [r["loss"] for r in read_metrics(run.path) if r["kind"] == "eval"]


@pytest.mark.parametrize("devices_after", [2, campaign(4)])
def test_a_run_killed_in_stages_goes_on_without_them_as_if_it_had_never_had_any(
    tmp_path, store, capsys, devices_after
):
    plain = train_here(config(tmp_path / "plain", store), "parallel.fsdp=1")
    capsys.readouterr()
    path = config(tmp_path / "staged", store)
    killed = train_here(path, *STAGES, on=2, stop_at=13)
    told = capsys.readouterr().out
    assert "2 stages × 2 rounds, 8 microbatches: a bubble of 1 / (8 × 2 + 1) = 5.9%" in told
    start = next(r for r in read_metrics(killed.path) if r["kind"] == "start")
    assert start["pipeline"] == {
        "stages": 2,
        "rounds": 2,
        "microbatches": 8,
        "bubble": pytest.approx(1 / 17),
    }
    run = train_here(path, "parallel.fsdp=-1", on=devices_after)
    assert "continuing from step 8 of 20" in capsys.readouterr().out
    found, wanted = losses(run), losses(plain)
    np.testing.assert_allclose([found[s] for s in range(1, 21)], list(wanted.values()), rtol=1e-5)
    np.testing.assert_allclose(evaluations(run), evaluations(plain), rtol=1e-5)

    # A finished run is used on its own mesh where there are devices for it: in stages.
    saved = checksums(run)
    for devices in (2, 1):
        assert call("eval", run.path, "--json", on=devices) == 0
    first, second = map(json.loads, capsys.readouterr().out.strip().splitlines())
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
    for devices in (2, 1):
        arguments = ["--prompt", "ROMEO:", "--max-tokens", "6", "--temperature", "0"]
        assert call("generate", run.path, *arguments, on=devices) == 0
    staged, alone = capsys.readouterr().out.split("ROMEO:")[1:]
    assert staged == alone
    assert checksums(run) == saved


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.num_layers=6"], "6 layers do not divide over 2 stages × 2 rounds = 4 pieces"),
        (["data.batch_size=5"], "global batch 5 does not divide over 1 shards"),
        (["parallel.microbatches=5"], "nearest are 4 or 6"),
    ],
)
def test_what_does_not_divide_is_refused_before_anything_is_written(
    tmp_path, store, capsys, overrides, message
):
    path = config(tmp_path, store)
    assert call("train", str(path), *STAGES, *overrides, "--plain", on=2) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs" / "small").exists()


def test_options_of_a_pipeline_without_stages_are_refused(tmp_path, store, capsys):
    path = config(tmp_path, store)
    assert call("train", str(path), "parallel.pipeline_rounds=2", "--plain") == 2
    assert "has no effect, because parallel.stage is 1" in capsys.readouterr().err
