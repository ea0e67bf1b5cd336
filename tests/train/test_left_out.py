"""What a run left out beside its last saved step, the same command does first."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import maxlm.evaluate.hooks as hooks
from maxlm.evaluate.perplexity import evaluate_by_batch
from maxlm.train.checkpoints import Checkpoints
from maxlm.train.run_folder import RunFolder
from maxlm.train.sinks import iterate_records, read_metrics
from tests.cases import campaign
from tests.small_run import batches_read, call, train_here, write_quick_config, write_text_store

SETS = ("first", "second")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_text_store(tmp_path_factory.mktemp("text") / "store", 30_000)


@pytest.fixture
def config(tmp_path, store):
    """20 steps, saved and evaluated at 8, 16 and 20 on two sets of many batches."""
    sets = {name: {"store": str(store), "max_tokens": 2000} for name in SETS}
    return write_quick_config(
        tmp_path / "run",
        store,
        eval={"sets": sets, "prompts": ["ROMEO:"], "sample_tokens": 4, "batch_size": 2},
    )


@pytest.fixture
def run(tmp_path):
    return RunFolder(str(tmp_path / "run" / "runs" / "small"))


def evaluated(run, step):
    """What was evaluated and sampled at a step, as often as it was."""
    records = [r for r in read_metrics(run.path) if r["step"] == step]
    return [r.get("set", "sample") for r in records if r["kind"] in ("eval", "sample")]


@pytest.fixture
def evaluations(monkeypatch):
    """Calls `at(number of the evaluation, batches done)` in every evaluation of a run."""

    def install(at):
        count = iter(range(1, 100))

        def watched(*arguments):
            number = next(count)
            for batches, result in enumerate(evaluate_by_batch(*arguments)):
                at(number, batches)
                yield result

        monkeypatch.setattr(hooks, "evaluate_by_batch", watched)

    return install


class KilledError(BaseException):
    """Nothing is saved or written after it, as after SIGKILL."""


def fail_at(evaluation, error):
    def at(number, batches):
        if (number, batches) == (evaluation, 1):
            raise error

    return at


def test_a_run_whose_last_evaluation_failed_does_what_was_left_out_and_then_nothing(
    config, run, evaluations, capsys
):
    evaluations(fail_at(6, ValueError("no room")))  # the second set at step 20
    with pytest.raises(ValueError, match="no room"):
        train_here(config)
    assert evaluated(run, 20) == ["first"]
    evaluations(lambda number, batches: None)
    with batches_read() as read:
        assert call("train", str(config), "--plain") == 0
    assert not read
    assert evaluated(run, 20) == [*SETS, "sample"]
    ends = [r["reason"] for r in iterate_records(run.path) if r["kind"] == "end"]
    assert ends == ["failed", "finished"]
    before = Path(run.metrics).read_text()
    capsys.readouterr()
    assert call("train", str(config), "--plain") == 0
    assert "is finished: 20 steps; nothing to do" in capsys.readouterr().out
    assert Path(run.metrics).read_text() == before


def test_a_run_whose_report_failed_writes_it(config, run, monkeypatch):
    def fail(runs):
        raise OSError("no paper")

    with monkeypatch.context() as patch:
        patch.setattr("maxlm.evaluate.report.write_report", fail)
        with pytest.raises(OSError, match="no paper"):
            train_here(config)
    assert not os.path.exists(run.report)
    assert call("train", str(config), "--plain") == 0
    assert "Finished: 20 of 20 steps" in Path(run.report).read_text()
    assert evaluated(run, 20) == [*SETS, "sample"]
    os.remove(run.report)  # killed between the end and the report
    assert call("train", str(config), "--plain") == 0
    assert os.path.exists(run.report)


def test_an_evaluation_that_a_kill_cut_at_a_saved_step_is_made_up(config, run, evaluations):
    evaluations(fail_at(3, KilledError()))  # the first set at step 16
    with pytest.raises(KilledError):
        train_here(config)
    assert Checkpoints(run.checkpoints).steps() == [8, 16]
    assert evaluated(run, 16) == []
    evaluations(lambda number, batches: None)
    assert call("train", str(config), "--plain") == 0
    assert [evaluated(run, step) for step in (8, 16, 20)] == [[*SETS, "sample"]] * 3


@pytest.mark.parametrize(
    ("number", "code", "reason", "evaluation", "step"),
    [
        (signal.SIGTERM, 75, "terminated", 3, 16),
        (signal.SIGINT, 130, "interrupted", 5, 20),
        campaign(signal.SIGTERM, 75, "terminated", 5, 20),
        campaign(signal.SIGINT, 130, "interrupted", 3, 16),
    ],
)
def test_a_signal_ends_an_evaluation_between_two_batches(
    config, run, evaluations, number, code, reason, evaluation, step
):
    seen = []

    def at(which, batches):
        seen.append((which, batches))
        if (which, batches) == (evaluation, 2):
            os.kill(os.getpid(), number)

    evaluations(at)
    assert call("train", str(config), "--plain") == code
    assert seen[-1] == (evaluation, 2)  # of 32
    assert Checkpoints(run.checkpoints).steps()[-1] == step
    end = read_metrics(run.path)[-1]
    assert (end["kind"], end["step"], end["reason"]) == ("end", step, reason)
    assert evaluated(run, step) == []
    evaluations(lambda which, batches: None)
    assert call("train", str(config), "--plain") == 0
    assert [evaluated(run, step) for step in (8, 16, 20)] == [[*SETS, "sample"]] * 3
    assert read_metrics(run.path)[-1]["reason"] == "finished"
