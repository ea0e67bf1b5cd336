"""A run is named `RUN` or `RUN@STEP`, on a disk or in a bucket."""

import pytest

from maxlm.errors import CheckpointError
from maxlm.train.run_folder import RunFolder, parse_run, require_run


@pytest.mark.parametrize(
    ("reference", "parsed"),
    [
        ("runs/x", ("runs/x", None)),
        ("runs/x/", ("runs/x", None)),
        ("runs/x@120", ("runs/x", 120)),
        ("runs/x/@120", ("runs/x", 120)),
        ("runs/x@newest", ("runs/x", None)),
        ("runs/a@b/x", ("runs/a@b/x", None)),
        ("runs/a@b/x@7", ("runs/a@b/x", 7)),
        ("memory://bucket/x@0", ("memory://bucket/x", 0)),
        ("/", ("/", None)),
    ],
)
def test_references_are_split(reference, parsed):
    assert parse_run(reference) == parsed


@pytest.mark.parametrize("step", ["", "-1", "1e3", "x", "٣"])
def test_what_is_no_step_is_refused(step):
    with pytest.raises(CheckpointError, match="is not a step; write RUN@1000"):
        parse_run(f"runs/x@{step}")


def test_a_folder_that_has_an_at_sign_is_taken_as_it_is(tmp_path):
    folder = tmp_path / "x@3"
    folder.mkdir()
    assert parse_run(str(folder)) == (str(folder), None)


def test_the_files_of_a_run_are_where_the_design_says():
    run = RunFolder("gs://bucket/runs/x")
    assert run.config == "gs://bucket/runs/x/config.yaml"
    assert run.checkpoints == "gs://bucket/runs/x/checkpoints"
    assert run.metrics == "gs://bucket/runs/x/metrics.jsonl"
    assert {run.tokenizer, run.tensorboard, run.report, run.log} == {
        f"gs://bucket/runs/x/{name}"
        for name in ("tokenizer", "tensorboard", "report.html", "log.txt")
    }


def test_a_run_must_exist_and_be_one(tmp_path):
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "config.yaml").write_text("")
    run, step = require_run(f"{tmp_path}/quick@5")
    assert (run.path, step) == (f"{tmp_path}/quick", 5)
    with pytest.raises(CheckpointError, match=r"no such run \(did you mean 'quick'\?\)"):
        require_run(f"{tmp_path}/quik")
    with pytest.raises(CheckpointError, match="not a run's folder"):
        require_run(str(tmp_path))
