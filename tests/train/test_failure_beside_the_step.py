"""What fails beside the steps loses none of them."""

from __future__ import annotations

import pytest

from maxlm.train.checkpoints import Checkpoints
from maxlm.train.loop import Hook
from maxlm.train.run_folder import RunFolder
from tests.small_run import train_here, write_quick_config, write_text_store


@pytest.mark.parametrize("at", [5, 20])
def test_an_evaluation_that_fails_leaves_a_checkpoint_of_its_step(tmp_path, monkeypatch, at):
    store = write_text_store(tmp_path / "store")
    config = write_quick_config(tmp_path / "run", store, eval={"sets": {}})

    def fail(step, params):
        if step == at:
            raise ValueError("out of ideas")
        return []

    monkeypatch.setattr("tests.small_run.training_hooks", lambda run: [Hook(1, fail)])
    with pytest.raises(ValueError, match="out of ideas"):
        train_here(config)
    run = RunFolder(str(tmp_path / "run" / "runs" / "small"))
    assert Checkpoints(run.checkpoints).steps()[-1] == at
