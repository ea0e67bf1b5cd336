"""A run whose folder, and whose data, are in a bucket: trained, stopped, resumed, evaluated."""

from __future__ import annotations

import json
import os
import signal

import pytest

from maxlm import storage
from maxlm.cli.main import main
from maxlm.config.load import load_config
from maxlm.evaluate.hooks import training_hooks
from maxlm.train.checkpoints import Checkpoints
from maxlm.train.loop import Hook
from maxlm.train.run_folder import RunFolder
from maxlm.train.sinks import read_metrics
from tests.gcs_emulator import bucket  # noqa: F401
from tests.small_run import (
    call,
    checksums,
    losses,
    train_here,
    write_quick_config,
    write_text_store,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bucket")


@pytest.fixture(scope="module")
def store(folder):
    return write_text_store(folder / "store", 30_000)


@pytest.fixture(scope="module")
def remote_store(store, bucket):  # noqa: F811
    """The same store in the bucket."""
    for path in store.rglob("*"):
        if path.is_file():
            storage.write_bytes(f"{bucket}/store/{path.relative_to(store)}", path.read_bytes())
    return f"{bucket}/store"


@pytest.fixture(scope="module")
def local(folder, store):
    """Twenty steps on this machine's disk; checkpoints at 8, 16 and 20."""
    return train_here(write_quick_config(folder / "local", store, logging={"tensorboard": True}))


@pytest.fixture(scope="module")
def config(folder, remote_store, bucket):  # noqa: F811
    """The same run, all of it in the bucket."""
    return write_quick_config(
        folder / "remote", remote_store, output=f"{bucket}/runs", logging={"tensorboard": True}
    )


def terminated(step: int):
    """Hooks of a run that gets a SIGTERM after `step`."""

    def hooks(run):
        def end(now, params):
            if now == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return []

        return [*training_hooks(run), Hook(1, end)]

    return hooks


def test_a_run_in_a_bucket_is_the_run_on_a_disk(config, local, tmp_path, monkeypatch, capsys):
    run = RunFolder(f"{load_config(str(config)).output}/small")
    assert run.path.startswith("gs://")
    command = ["train", str(config), "--plain"]
    monkeypatch.chdir(tmp_path)  # nothing may fall to the disk beside it
    with monkeypatch.context() as patch:
        patch.setattr("maxlm.evaluate.hooks.training_hooks", terminated(11))
        assert call(*command) == 75
    assert Checkpoints(run.checkpoints).steps()[0] == 8
    stopped = Checkpoints(run.checkpoints).steps()[-1]
    assert 11 <= stopped < 16
    assert read_metrics(run.path)[-1]["reason"] == "terminated"

    train_here(config, stop_at=18)  # goes on, and is killed after the checkpoint of step 16
    assert Checkpoints(run.checkpoints).steps() == [8, stopped, 16]
    capsys.readouterr()
    assert call(*command) == 0
    assert "continuing from step 16 of 20" in capsys.readouterr().out
    for step in (16, 20):
        assert checksums(run, step) == checksums(local, step)
    assert losses(run) == losses(local)
    assert call(*command) == 0 and "is finished" in capsys.readouterr().out

    names = {"checkpoints", "config.yaml", "metrics.jsonl", "report.html", "tensorboard"}
    assert names <= set(storage.list_names(run.path))
    evaluate_alike(run, local, capsys)
    assert list(tmp_path.iterdir()) == []


def evaluate_alike(run: RunFolder, local: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """`eval`, `checkpoints` and `report` say of a run in a bucket what they say of one on disk."""
    found = []
    for one in (run, local):
        assert call("eval", f"{one.path}@16", "--json") == 0
        record = json.loads(capsys.readouterr().out)
        found.append({name: record[name] for name in ("set", "loss", "bits_per_byte", "tokens")})
    assert found[0] == found[1]
    assert call("eval", f"{run.path}@7") == 2
    assert "this checkpoint does not exist; complete: " in capsys.readouterr().err
    assert main(["checkpoints", "verify", run.path, "--all"]) == 0
    storage.remove_file(run.report)
    assert main(["report", run.path]) == 0
    assert storage.exists(run.report)
