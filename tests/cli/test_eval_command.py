"""`maxlm eval` says what the run itself said, wherever and however it is asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from maxlm.train.sinks import read_metrics
from tests.data.tokenizers.tiny_tokenizers import exact_tokenizer
from tests.small_run import call, train_here, write_quick_config, write_store, write_text_store

NUMBERS = ("loss", "perplexity", "bits_per_byte", "tokens")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("eval_command")


@pytest.fixture(scope="module")
def store(folder):
    return write_text_store(folder / "store", 30_000)


@pytest.fixture(scope="module")
def run(folder, store):
    """Twenty steps with two sets and averaged weights; checkpoints at 8, 16 and 20."""
    sets = {
        "validation": {"store": str(store)},
        "first": {"store": str(store), "split": "train", "length": 48, "max_tokens": 1000},
    }
    average = {"average_decay": 0.9}
    return train_here(write_quick_config(folder, store, eval={"sets": sets}, optimizer=average))


def printed_by_the_run(run, step: int) -> dict[str, tuple]:
    records = [r for r in read_metrics(run.path) if r["kind"] == "eval" and r["step"] == step]
    return {r["set"]: tuple(r[name] for name in NUMBERS) for r in records}


def answered(capsys) -> dict[str, tuple]:
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {r["set"]: tuple(r[name] for name in NUMBERS) for r in records}


@pytest.mark.slow
def test_the_numbers_are_those_of_the_run_to_the_last_digit(run, capsys):
    for reference, step in ((run.path, 20), (f"{run.path}@8", 8)):
        assert call("eval", reference, "--json") == 0
        found = answered(capsys)
        assert found == printed_by_the_run(run, step)
        assert set(found) == {"validation", "first"}


@pytest.mark.slow
def test_lines_for_people_show_the_same_numbers(run, capsys):
    assert call("eval", run.path) == 0
    output = capsys.readouterr().out
    loss, perplexity, bits, tokens = printed_by_the_run(run, 20)["validation"]
    line = next(line for line in output.splitlines() if "validation" in line)
    for text in (f"{loss:.4f}", f"{perplexity:.3f}", f"{bits:.4f}", f"{tokens:,} tokens"):
        assert text in line


@pytest.mark.slow
def test_another_mesh_gives_the_same_numbers_but_for_rounding(run, capsys):
    assert call("eval", run.path, "--json", "parallel.fsdp=2", "parallel.tensor=2", on=4) == 0
    for name, (loss, _, _, tokens) in answered(capsys).items():
        wanted = printed_by_the_run(run, 20)[name]
        assert loss == pytest.approx(wanted[0], rel=1e-5) and tokens == wanted[3]


@pytest.mark.slow
def test_the_averaged_weights_are_what_is_evaluated(run, capsys):
    """Without them the numbers are others: the config says which weights are used."""
    assert "average_decay: 0.9" in Path(run.config).read_text()
    assert call("eval", run.path, "--json", "optimizer.average_decay=null") == 0
    assert answered(capsys) != printed_by_the_run(run, 20)


@pytest.mark.slow
def test_a_set_of_its_own_can_be_asked_for(run, store, capsys):
    arguments = [f"eval.sets.more.store={store}", "eval.sets.more.max_tokens=100"]
    assert call("eval", run.path, "--json", *arguments) == 0
    assert answered(capsys)["more"][3] == 100


@pytest.mark.slow
def test_mistakes_are_told_kindly(run, store, tmp_path, capsys):
    other = write_store(tmp_path / "bpe", {"validation": ["Some text."]}, exact_tokenizer("bpe"))
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(run.config, bare / "config.yaml")
    cases = {
        (f"{run.path}x",): ["there is no such run", "did you mean 'small'"],
        (str(store),): ["not a run's folder"],
        (f"{run.path}@7",): ["does not exist", "8, 16, 20"],
        (f"{run.path}@last",): ["not a step", "RUN@1000"],
        (str(bare),): ["no complete checkpoint"],
        (run.path, f"eval.sets.bpe.store={other}"): ["eval.sets.bpe", "another tokenizer"],
        (run.path, f"eval.sets.no.store={tmp_path}/no"): ["no", "does not exist", "maxlm data"],
        (run.path, f"eval.sets.no.store={store}", "eval.sets.no.split=valid"): ["validation"],
        (run.path, "eval.sets=null"): ["names no evaluation set"],
        (run.path, "eval.set.x.length=3"): ["eval.set", "did you mean 'sets'"],
        (run.path, "model.num_layers=3"): ["another model", "shape"],
        (run.path, "parallel.fsdp=3"): ["fsdp 3", "devices"],
    }
    for arguments, parts in cases.items():
        assert call("eval", *arguments) == 2, arguments
        captured = capsys.readouterr()
        for part in parts:
            assert part in captured.err, (arguments, captured.err)
        assert "Traceback" not in captured.err


@pytest.mark.slow
def test_compiler_options_that_the_compiler_lacks_are_refused(run, capsys):
    assert call("eval", run.path, "parallel.compiler_options.no_such_option=1") == 2
    assert "No such compile option: 'no_such_option'" in capsys.readouterr().err
