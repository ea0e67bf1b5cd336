"""What a run starts from must know its tokens, and a branch must read its parent's text on."""

from __future__ import annotations

import shutil

import pytest

from maxlm.data.store import TokenStore
from maxlm.data.tokenizers import train_sentencepiece
from maxlm.train.checkpoints import Checkpoints
from tests.small_run import TEXT, call, train_here, write_quick_config, write_store

PLAYS = TEXT.read_text()[:40_000]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Two stores of one vocabulary size, whose tokenizers differ."""
    folder = tmp_path_factory.mktemp("stores")
    for name, text in (("mine", PLAYS), ("other", PLAYS.swapcase())):
        tokenizer = train_sentencepiece([text], vocab_size=400)
        write_store(folder / name, {"train": [PLAYS]}, tokenizer)
    return folder


@pytest.fixture(scope="module")
def parent(tmp_path_factory, stores):
    folder = tmp_path_factory.mktemp("parent")
    config = write_quick_config(
        folder, shutil.copytree(stores / "mine", folder / "store"), eval={"sets": {}}
    )
    return train_here(config, "train.duration=8 steps"), folder / "store"


@pytest.fixture
def config(tmp_path, stores):
    def write(store):
        return str(write_quick_config(tmp_path / "new", store, name="new", eval={"sets": {}}))

    return write


def begin(config, *arguments):
    return call("train", config, "--plain", "train.duration=2 steps", *arguments)


def hashes(run, stores):
    theirs = Checkpoints(run.checkpoints).metadata(8)["tokenizer_hash"]
    return theirs[:12], TokenStore(str(stores / "other")).tokenizer().hash[:12]


def test_weights_of_another_tokenizer_are_refused_with_both_hashes(parent, stores, config, capsys):
    run, store = parent
    assert begin(config(stores / "other"), f"train.init_from={run.path}") == 2
    said = capsys.readouterr().err
    theirs, mine = hashes(run, stores)
    assert f"{run.checkpoints}/8 was trained with another tokenizer ({theirs}…)" in said
    assert f"({mine}…): its weights know other tokens" in said and "Traceback" not in said
    assert begin(config(store), f"train.init_from={run.path}") == 0


@pytest.fixture
def rewritten(parent, stores):
    """Puts a store in the place of the parent's, until the test is over."""
    _, store = parent

    def put(other):
        shutil.rmtree(store)
        shutil.copytree(other, store)

    yield put
    put(stores / "mine")


def test_a_branch_of_a_store_with_another_tokenizer_is_refused(
    parent, stores, config, rewritten, capsys
):
    run, store = parent
    rewritten(stores / "other")
    assert begin(config(store), "--branch-from", run.path) == 2
    said = capsys.readouterr().err
    theirs, mine = hashes(run, stores)
    assert f"another tokenizer ({theirs}…)" in said and f"({mine}…)" in said


def test_a_branch_notices_that_its_parents_store_was_rewritten(
    parent, stores, config, rewritten, tmp_path, capsys
):
    run, store = parent
    tokenizer = TokenStore(str(stores / "mine")).tokenizer()
    other = write_store(tmp_path / "shorter", {"train": [PLAYS[:30_000]]}, tokenizer)
    rewritten(other)
    assert begin(config(store), "--branch-from", run.path) == 2
    said = capsys.readouterr().err
    was = Checkpoints(run.checkpoints).metadata(8)["data_hash"]
    assert f"{run.checkpoints}/8 was trained on other data: data hash {was[:12]}…" in said
    assert f"plays ({store})" in said and "Traceback" not in said


def test_a_branch_that_reads_other_text_alone_does_not_mind(
    parent, stores, config, rewritten, tmp_path
):
    run, store = parent
    tokenizer = TokenStore(str(stores / "mine")).tokenizer()
    rewritten(write_store(tmp_path / "shorter", {"train": [PLAYS[:30_000]]}, tokenizer))
    new = write_quick_config(
        tmp_path / "new",
        store,
        name="new",
        eval={"sets": {}},
        data={"length": 32, "batch_size": 8, "mixture": {"new": {"store": str(stores / "mine")}}},
    )
    assert begin(str(new), "--branch-from", run.path) == 0
