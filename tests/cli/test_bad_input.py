"""Bad input through the real commands: exit 2, file and place named, what was saved still good.

| bad input | tested here | and below the command, in |
|---|---|---|
| tokenizer that is not the store's | `BAD_RUNS` | data/test_open_sources.py, cli/test_eval_command.py |
| flipped byte in a store | `test_a_flipped_byte_…` | data/test_store.py |
| vocabulary above the type of ids | `test_a_vocabulary_…`, `BAD_RUNS` | data/test_tokenize.py |
| batch that does not divide | `BAD_RUNS` | parallel/test_mesh.py |
| run folder of another config | `BAD_RUNS` | config/test_meaning.py |
| missing checkpoint | `test_a_missing_checkpoint_…` | cli/test_eval_command.py |
| half-written or damaged checkpoint | `test_a_half_written_…`, `test_only_half_…`, `test_damaged_…` | train/test_checkpoint_damage.py |
| full disk | cli/test_full_disk.py | data/test_tokenize.py, data/test_store.py, train/test_sinks.py |
| empty, not UTF-8, cut gzip, bad JSON, no text, huge | `BAD_SOURCES` | data/test_sources.py |
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from maxlm.cli.main import main
from maxlm.train.checkpoints import Checkpoints
from maxlm.train.run_folder import RunFolder
from tests.data.tokenizers.tiny_tokenizers import exact_tokenizer, gpt2_files
from tests.small_run import (
    call,
    checksums,
    train_here,
    write_quick_config,
    write_store,
    write_text_store,
)

# A read that Orbax gives up leaves others of its own running; their loop closes under them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bad_input")


@pytest.fixture(scope="module")
def store(folder):
    return write_text_store(folder / "store", 30_000)


@pytest.fixture(scope="module")
def unbroken(folder, store):
    """Twenty steps; checkpoints at 8, 16 and 20."""
    return train_here(write_quick_config(folder / "unbroken", store))


@pytest.fixture(scope="module")
def killed(folder, store):
    """The same run, killed at step 18: checkpoints at 8 and 16."""
    run = train_here(write_quick_config(folder / "killed", store), stop_at=18)
    assert Checkpoints(run.checkpoints).steps() == [8, 16]
    return run


@pytest.fixture
def own(tmp_path, store, killed):
    """(config, run): a copy of the killed run, to be spoilt."""
    config = write_quick_config(tmp_path, store)
    run = RunFolder(str(shutil.copytree(killed.path, tmp_path / "runs" / "small")))
    return config, run


def kept(run: RunFolder) -> dict[str, bytes]:
    """What a failed command must leave as it is: config, tokenizer and checkpoints."""
    paths = [Path(run.config), *Path(run.tokenizer).rglob("*"), *Path(run.checkpoints).rglob("*")]
    return {str(path): path.read_bytes() for path in sorted(paths) if path.is_file()}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, on: int = 1) -> str:
    """Run a command that must exit 2; returns what it said, which must be no traceback."""
    capsys.readouterr()
    assert call(*arguments, on=on) == 2
    said = capsys.readouterr().err
    assert re.search(rf"^maxlm {arguments[0]}: ", said, re.MULTILINE), said
    assert "Traceback" not in said
    return said


def other_tokenizer(folder: Path) -> str:
    """A store of two splits, written with a tokenizer other than bytes."""
    texts = {"train": ["Some text. " * 40], "validation": ["Some text. " * 9]}
    return str(write_store(folder / "bpe", texts, exact_tokenizer("bpe")))


def mixed_up(store: Path, folder: Path) -> str:
    """A store whose tokenizer's folder holds another tokenizer than the one that wrote it."""
    mixed = Path(shutil.copytree(store, folder / "mixed_up"))
    shutil.rmtree(mixed / "tokenizer")
    exact_tokenizer("bpe").save(str(mixed / "tokenizer"))
    return str(mixed)


# name: (overrides, devices, what is said), {bpe} and {mixed} being stores.
BAD_RUNS = {
    "sources with two tokenizers": (
        ["data.mixture.more.store={bpe}"],
        1,
        r"sources 'plays' and 'more' were written with different tokenizers: .*bpe has",
    ),
    "evaluation with another tokenizer": (
        ["eval.sets.more.store={bpe}"],
        1,
        r"eval\.sets\.more: .*bpe was written with another tokenizer .*RUN/tokenizer",
    ),
    "a tokenizer that did not write the store": (
        ["data.mixture.plays.store={mixed}"],
        1,
        r"mixed_up/tokenizer: hash \w+… is not that of the tokenizer which wrote the store",
    ),
    "a tokenizer demanded that is another": (
        ["data.tokenizer={bpe}/tokenizer"],
        1,
        r"source 'plays' .*was written with the tokenizer \w+…, but data\.tokenizer is .*bpe",
    ),
    "a vocabulary that is too small for the ids": (
        ["model.vocab_size=256"],
        1,
        r"(?s)model\.vocab_size.*256.*257",
    ),
    "a batch that does not divide over other devices": (
        [],
        3,
        r"global batch 8 does not divide over 3 shards \(.*fsdp 3.*\): nearest are 6 and 9",
    ),
    "a batch that does not divide by its micro-batches": (
        ["train.accumulation=3"],
        1,
        r"small\.json:1: data\.batch_size: 8 does not divide into train\.accumulation 3 .* 6 and 9",
    ),
    "another config": (
        ["model.num_layers=2", "optimizer.learning_rate=0.5"],
        1,
        r"(?s)holds a run with another config:.*model\.num_layers.*1.*2.*learning_rate.*name=…",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD_RUNS)
def test_what_does_not_fit_a_run_is_refused_and_the_run_left_as_it_was(
    tmp_path, own, store, capsys, name
):
    config, run = own
    overrides, devices, message = BAD_RUNS[name]
    paths = {"bpe": other_tokenizer(tmp_path), "mixed": mixed_up(store, tmp_path)}
    overrides = [override.format(**paths) for override in overrides]
    before = kept(run)
    said = refused(capsys, "train", str(config), "--plain", *overrides, on=devices)
    assert re.search(message, said), said
    assert kept(run) == before


@pytest.mark.slow
def test_a_batch_that_does_not_divide_leaves_no_folder_behind(tmp_path, store, capsys):
    config = write_quick_config(tmp_path, store)
    said = refused(capsys, "train", str(config), "--plain", "data.batch_size=6", on=4)
    assert re.search(r"batch 6 does not divide over 4 shards \(.*fsdp 4.*\): .* 4 and 8", said)
    assert not (tmp_path / "runs" / "small" / "config.yaml").exists()


@pytest.mark.slow
def test_a_flipped_byte_in_the_store_stops_the_run_and_a_mended_store_goes_on_bitwise(
    tmp_path, store, unbroken, capsys
):
    mine = Path(shutil.copytree(store, tmp_path / "store"))
    config = write_quick_config(tmp_path, mine)
    run = train_here(config, stop_at=18)  # another store would be another run
    tokens = mine / "train" / "00000.tokens"
    good = tokens.read_bytes()
    tokens.write_bytes(good[:500] + bytes([good[500] ^ 4]) + good[501:])
    before = kept(run)
    said = refused(capsys, "train", str(config), "--plain")
    assert re.search(rf"{tokens}: bytes 0 to \d+ are damaged \(CRC32C", said), said
    assert kept(run) == before
    assert call("eval", run.path) == 0  # of another split, which is whole
    tokens.write_bytes(good)
    assert call("train", str(config), "--plain") == 0
    assert checksums(run, 20) == checksums(unbroken, 20)


@pytest.mark.slow
def test_a_missing_checkpoint_is_named_with_those_that_are_there(tmp_path, own, capsys):
    config, run = own
    before = kept(run)
    commands = [
        ["eval", f"{run.path}@7"],
        ["generate", f"{run.path}@7", "--prompt", "A"],
        ["train", str(config), "name=branch", "--branch-from", f"{run.path}@7"],
        ["train", str(config), "name=fine", f"train.init_from={run.path}@7"],
    ]
    for command in commands:
        said = refused(capsys, *command)
        assert f"{run.checkpoints}/7: this checkpoint does not exist; complete: 8, 16" in said
    shutil.rmtree(run.checkpoints)
    for command in (["eval", run.path], ["generate", run.path, "--prompt", "A"]):
        assert "no complete checkpoint" in refused(capsys, *command)
    assert {path: c for path, c in before.items() if "/checkpoints/" not in path} == kept(run)
    assert not (tmp_path / "runs" / "branch" / "config.yaml").exists()


@pytest.mark.slow
def test_a_half_written_checkpoint_is_passed_over_for_the_one_before(own, unbroken, capsys):
    config, run = own
    os.unlink(f"{run.checkpoints}/16/commit_success.txt")
    said = refused(capsys, "eval", f"{run.path}@16")
    assert f"{run.checkpoints}/16: this checkpoint is half-written; complete: 8" in said
    assert call("train", str(config), "--plain") == 0
    told = capsys.readouterr().out
    assert "ignored what a killed save left: 16" in told
    assert "continuing from step 8 of 20" in told
    assert checksums(run, 20) == checksums(unbroken, 20)
    assert Checkpoints(run.checkpoints).half_written() == []


@pytest.mark.slow
def test_only_half_written_checkpoints_start_the_run_again_and_say_so(own, unbroken, capsys):
    config, run = own
    for step in (8, 16):
        os.unlink(f"{run.checkpoints}/{step}/commit_success.txt")
    said = refused(capsys, "generate", run.path, "--prompt", "A")
    assert "there is no complete checkpoint (2 half-written)" in said
    assert call("train", str(config), "--plain") == 0
    assert "training starts from the beginning" in capsys.readouterr().out
    assert checksums(run, 20) == checksums(unbroken, 20)


def damage(run: RunFolder, step: int) -> None:
    """Cut every data file short: `eval` reads the weights alone, which lie in any of them."""
    for path in Path(Checkpoints(run.checkpoints).path(step)).rglob("d/*"):
        os.truncate(path, 10)


@pytest.mark.slow
def test_damaged_checkpoints_fall_back_loudly_and_are_refused_when_none_is_good(
    own, unbroken, capsys
):
    config, run = own
    damage(run, 16)
    assert f"{run.checkpoints}/16" in refused(capsys, "eval", f"{run.path}@16")
    with pytest.warns(UserWarning, match="continuing from step 8"):
        assert call("train", str(config), "--plain") == 0
    assert checksums(run, 20) == checksums(unbroken, 20)
    for step in Checkpoints(run.checkpoints).steps():
        damage(run, step)
    before = kept(run)
    said = refused(capsys, "eval", run.path)
    assert "no good checkpoint" in said and f"{run.checkpoints}/20" in said and "backup" in said
    assert kept(run) == before


def test_a_vocabulary_above_the_type_of_ids_is_refused_and_the_store_before_is_whole(
    tmp_path, capsys
):
    files = gpt2_files()
    vocabulary = json.loads(files["vocab.json"])
    vocabulary |= {f"word{n}": len(vocabulary) + n for n in range(70_000)}
    wide = tmp_path / "wide"
    wide.mkdir()
    (wide / "vocab.json").write_text(json.dumps(vocabulary))
    (wide / "merges.txt").write_bytes(files["merges.txt"])
    (tmp_path / "a.txt").write_text("the text")
    command = ["data", "tokenize", "--source", str(tmp_path / "a.txt"), "--tokenizer", str(wide)]
    said = refused(capsys, *command, "--output", str(tmp_path / "no"), "--dtype", "uint16")
    count = f"{len(vocabulary):,}"
    assert f"uint16 holds ids up to 65,535, the tokenizer has {count}: use uint32" in said
    assert not (tmp_path / "no").exists()
    assert main([*command, "--output", str(tmp_path / "yes")]) == 0
    manifest = (tmp_path / "yes" / "manifest.json").read_bytes()
    assert json.loads(manifest)["dtype"] == "uint32"
    refused(capsys, *command, "--output", str(tmp_path / "yes"), "--dtype", "uint16")
    assert (tmp_path / "yes" / "manifest.json").read_bytes() == manifest
    assert main(["data", "inspect", str(tmp_path / "yes"), "--verify"]) == 0


LINES = "".join(json.dumps({"text": f"line {n} " + "x" * 40}) + "\n" for n in range(200))
# file: (content, what is said after the file's name, how it is counted when left out)
BAD_SOURCES = {
    "b.txt": (b"", r": the file is empty", "1 empty_file"),
    "b.md": (b"ab\ncd\xffef", r":2 \(byte 5\): not UTF-8.*0xFF", "1 not_utf8"),
    "b.jsonl": (b'{"text": "one"}\n{"text": \n', r":2 \(byte 16\): not JSON", "1 not_json"),
    "c.jsonl": (
        b'{"text": "one"}\n{"texts": "two"}\n',
        r":2 .*no field 'text' \(did you mean 'texts'\?\)",
        "1 no_text_field",
    ),
    "b.jsonl.gz": (
        gzip.compress(LINES.encode())[:-40],
        r".* is cut short after [\d,]+ bytes",
        "1 damaged_or_cut_short",
    ),
    "huge.txt": (b"y" * 3_000_000, r": a document of 3,000,000 bytes .*limit", "1 document_too"),
    "huge.jsonl": (
        b'{"text": "' + b"y" * 3_000_000 + b'"}\n',
        r":1 .*3,000,000 bytes .*limit",
        "1 document_too",
    ),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_a_bad_source_is_named_with_its_place_and_finished_shards_are_kept(tmp_path, capsys, name):
    content, message, counted = BAD_SOURCES[name]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.jsonl").write_text(LINES)
    (corpus / name).write_bytes(content)
    output = tmp_path / "store"
    command = ["data", "tokenize", "--source", str(corpus), "--tokenizer", "byte", "--workers", "1"]
    command += ["--output", str(output), "--shard-bytes", "4096", "--max-document-bytes", "2MiB"]
    said = refused(capsys, *command)
    assert re.search(re.escape(name) + message, said), said
    assert "--on-error skip" in said
    assert not (output / "manifest.json").exists()
    recorded = {path.stem for path in (output / "unfinished").glob("0*.json")}
    before = {p: p.read_bytes() for p in (output / "train").glob("0*") if p.stem in recorded}
    assert len(before) >= 3
    assert main([*command, "--on-error", "skip"]) == 0
    assert counted in capsys.readouterr().out
    assert all(path.read_bytes() == content for path, content in before.items())
    assert main(["data", "inspect", str(output), "--verify"]) == 0


def test_a_huge_document_within_the_limit_is_one_document(tmp_path, capsys):
    (tmp_path / "huge.txt").write_bytes(b"word " * 1_000_000)
    command = ["data", "tokenize", "--source", str(tmp_path / "huge.txt"), "--tokenizer", "byte"]
    assert main([*command, "--output", str(tmp_path / "store")]) == 0
    assert "train: 1 documents, 5,000,002 tokens, 5,000,000 bytes" in capsys.readouterr().out
