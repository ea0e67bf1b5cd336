"""What a branch takes from its parent, and in what it counts."""

from __future__ import annotations

import pytest

from maxlm.config.load import load_config
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
