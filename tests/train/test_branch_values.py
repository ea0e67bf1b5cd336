"""What a branch takes from its parent, and in what it counts."""

from __future__ import annotations

import pytest

from maxlm.config.load import load_config
from maxlm.errors import ConfigError
from maxlm.train.setup import prepare
from tests.small_run import devices, train_here, write_quick_config, write_text_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_text_store(tmp_path_factory.mktemp("text") / "store")


@pytest.fixture(scope="module")
def parent(tmp_path_factory, store):
    """A run of 20 steps whose learning rate and precision are derived; and its config."""
    folder = tmp_path_factory.mktemp("parent")
    config = write_quick_config(
        folder,
        store,
        data={"length": 32, "batch_size": 4},
        optimizer={"learning_rate": None},
        train={"precision": None},
        eval={"sets": {}},
    )
    run = train_here(config)
    return config, run


def branch_of(parent, store, folder, *overrides, **sections):
    config = write_quick_config(folder, store, name="branch", eval={"sets": {}}, **sections)
    loaded = load_config(str(config), list(overrides))
    with devices(1):
        return prepare(loaded, branch_from=f"{parent[1].path}@16")


def test_a_branch_keeps_the_batch_and_learning_rate_that_its_parent_derived(
    tmp_path, store, parent
):
    saved = load_config(parent[1].config, [])
    branch = branch_of(
        parent,
        store,
        tmp_path,
        data={"batch_size": None},
        optimizer={"learning_rate": None},
        train={"duration": "9 steps"},
    )
    assert branch.config.data.batch_size == saved.data.batch_size == 4
    assert branch.config.optimizer.learning_rate == saved.optimizer.learning_rate
    assert branch.timeline.total_steps == 16 + 9
    derived = {value.key for value in branch.derived}
    assert not derived & {"data.batch_size", "optimizer.learning_rate", "train.precision"}


def test_what_a_branch_says_itself_counts(tmp_path, store, parent):
    branch = branch_of(
        parent,
        store,
        tmp_path,
        data={"batch_size": 2},
        optimizer={"learning_rate": 5e-4},
        train={"duration": "9 steps"},
    )
    assert branch.config.data.batch_size == 2
    assert branch.config.optimizer.learning_rate == 5e-4


def test_what_a_branch_counts_in_tokens_it_counts_in_its_own_batch_from_its_own_start(
    tmp_path, store, parent
):
    branch = branch_of(
        parent,  # 16 steps of 4 × 32 tokens
        store,
        tmp_path,
        data={"length": 32, "batch_size": 8},  # 256 tokens a step
        train={"duration": "2048 tokens"},
        schedule={"warmup": "1500 tokens", "decay_fraction": 0.25},
        logging={"every": "32 examples"},
        checkpoint={"every": "1024 tokens", "keep_every": "1280 tokens"},
    )
    assert branch.timeline.total_steps == 16 + 8
    assert branch.timeline.total_tokens == 16 * 128 + 2048
    assert (branch.rate.start_step, branch.rate.warmup_steps) == (16, 6)
    assert (branch.intervals.log, branch.intervals.checkpoint) == (4, 4)
    assert branch.checkpoints._keep_every_steps == 5


def test_a_branchs_schedule_is_held_against_its_own_steps(tmp_path, store, parent):
    with pytest.raises(ConfigError, match=r"warm-up 8 \+ decay 0\.5 × 8 = 12 steps is longer"):
        branch_of(
            parent,
            store,
            tmp_path,
            data={"length": 32, "batch_size": 4, "phases": [{"batch_size": 8}]},
            train={"duration": "64 examples"},
            schedule={"warmup": "2000 tokens", "decay_fraction": 0.5},
        )
