"""Tokenizing: the same store whatever the workers and kills; splits; bad input; full disks."""

from __future__ import annotations

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest

from maxlm.data import shards
from maxlm.data.document import OnError
from maxlm.data.sources.source_file import ReadOptions
from maxlm.data.store import TokenStore
from maxlm.data.tokenize.run import TokenizeResult, tokenize
from maxlm.data.tokenize.settings import Markers, SplitBy, StoreSettings
from maxlm.data.tokenizers import load_tokenizer
from maxlm.errors import ConfigError, DataError, StorageError
from maxlm.lock import only_process

END = 256


def write_corpus(folder: Path, documents: int = 60, seed: int = 0) -> list[str]:
    """Files of several formats, one of them of several stretches; returns the texts."""
    draw = np.random.default_rng(seed)
    texts = [
        "".join(map(chr, draw.integers(97, 123, draw.integers(20, 900)))) for _ in range(documents)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text}).encode() + b"\n" for text in texts]
    third = documents // 3
    (folder / "a.jsonl").write_bytes(b"".join(lines[:third]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[third : 2 * third]), mtime=0))
    for number, text in enumerate(texts[2 * third :]):
        (folder / f"c{number:03d}.txt").write_text(text)
    return texts


def run(source: Path | str, output: Path, **options: object) -> TokenizeResult:
    names = ("splits", "split_by", "document_markers", "dtype", "shard_bytes", "read")
    chosen = {name: options.pop(name) for name in names if name in options}
    settings = StoreSettings(**chosen)  # type: ignore[arg-type]
    options.setdefault("tokenizer", "byte")
    return tokenize([str(source)], output=str(output), settings=settings, **options)  # type: ignore[arg-type]


def texts_in(store: TokenStore, split: str) -> list[str]:
    """Texts of the documents, markers taken off."""
    opened, tokenizer = store.split(split), store.tokenizer()
    ids = opened.read(0, opened.num_tokens)
    starts = opened.document_starts
    return [tokenizer.decode(ids[a:b]) for a, b in pairwise(starts)]


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file of a store."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_store_holds_every_document_between_its_markers(tmp_path: Path) -> None:
    texts = write_corpus(tmp_path / "corpus")
    store = run(tmp_path / "corpus", tmp_path / "store").store
    split = store.split("train")
    assert texts_in(store, "train") == texts
    assert split.num_bytes == sum(map(len, texts))
    ids = split.read(0, split.num_tokens)
    assert all(ids[start] == END for start in split.document_starts[:-1])
    assert all(ids[stop - 1] == END for stop in split.document_starts[1:])


@pytest.mark.parametrize(
    ("markers", "expected"),
    [
        ("both", [END, 104, 105, END]),
        ("bos", [END, 104, 105]),
        ("eos", [104, 105, END]),
        ("none", [104, 105]),
    ],
)
def test_document_markers_can_be_chosen(tmp_path: Path, markers: str, expected: list[int]) -> None:
    (tmp_path / "a.txt").write_text("hi")
    result = run(tmp_path / "a.txt", tmp_path / "store", document_markers=Markers(markers))
    assert result.store.split("train").read(0, 9).tolist() == expected


def test_by_position_the_sample_is_cut_where_nanogpt_cuts_it(tmp_path: Path) -> None:
    from maxlm.data.samples import __file__ as samples

    text = (Path(samples).parent / "tinyshakespeare.txt").read_text()
    settings = {"splits": {"validation": 0.1}, "split_by": SplitBy.POSITION}
    store = run("sample:tinyshakespeare", tmp_path / "store", **settings).store
    cut = int(len(text) * 0.9)
    assert texts_in(store, "train") == [text[:cut]]
    assert texts_in(store, "validation") == [text[cut:]]


def test_splits_by_hash_share_no_text_and_duplicates_stay_together(tmp_path: Path) -> None:
    texts = write_corpus(tmp_path / "corpus", 600)
    (tmp_path / "corpus" / "copy.jsonl").write_bytes((tmp_path / "corpus/a.jsonl").read_bytes())
    splits = {"validation": 0.1, "test": 0.2}
    store = run(tmp_path / "corpus", tmp_path / "store", splits=splits).store
    found = {name: texts_in(store, name) for name in store.splits}
    assert list(found) == ["train", "validation", "test"]
    assert sorted(chain(*found.values())) == sorted(texts + texts[:200])
    sets = {name: set(split) for name, split in found.items()}
    assert not (sets["train"] & sets["validation"] | sets["train"] & sets["test"])
    assert not sets["validation"] & sets["test"]
    assert 0.06 < len(sets["validation"]) / 600 < 0.14
    assert 0.15 < len(sets["test"]) / 600 < 0.25


def test_the_store_is_the_same_bytes_whatever_the_number_of_workers(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    stores = []
    for workers in (1, 2, 3):
        options = {"shard_bytes": 3000, "splits": {"validation": 0.2}, "workers": workers}
        run(tmp_path / "corpus", tmp_path / f"store{workers}", **options)
        stores.append(content_of(tmp_path / f"store{workers}"))
    assert len(stores[0]) > 40
    assert stores[0] == stores[1] == stores[2]


def test_the_manifest_does_not_depend_on_where_the_sources_lie(tmp_path: Path) -> None:
    hashes = []
    for place in ("here", "there"):
        write_corpus(tmp_path / place / "corpus")
        hashes.append(run(tmp_path / place / "corpus", tmp_path / place / "store").store.hash)
    assert hashes[0] == hashes[1]
    assert str(tmp_path) not in (tmp_path / "here/store/manifest.json").read_text()


def test_a_finished_store_is_left_as_it_is(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    assert not run(tmp_path / "corpus", tmp_path / "store").already_complete
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*")}
    assert run(tmp_path / "corpus", tmp_path / "store", workers=2).already_complete
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*")}


def test_another_setting_or_source_on_a_store_is_refused_with_the_difference(
    tmp_path: Path,
) -> None:
    write_corpus(tmp_path / "corpus")
    run(tmp_path / "corpus", tmp_path / "store", splits={"validation": 0.1})
    with pytest.raises(ConfigError, match=r"settings\.splits\.validation: 0\.1 → 0\.2"):
        run(tmp_path / "corpus", tmp_path / "store", splits={"validation": 0.2})
    (tmp_path / "corpus/c000.txt").write_text("changed")
    with pytest.raises(ConfigError, match=r"source\.3 \(c000\.txt\)\.sha256: "):
        run(tmp_path / "corpus", tmp_path / "store", splits={"validation": 0.1})


def test_a_folder_of_something_else_is_not_written_to(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    with pytest.raises(ConfigError, match=r"holds a\.jsonl, .* but no token store"):
        run(tmp_path / "corpus", tmp_path / "corpus")


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    with (
        only_process(str(tmp_path / "store" / "unfinished" / "lock"), "busy"),
        pytest.raises(StorageError, match=rf"another process is writing .*pid {os.getpid()} on "),
    ):
        run(tmp_path / "corpus", tmp_path / "store")


def test_ids_take_the_smaller_type_that_holds_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert run(tmp_path / "a.txt", tmp_path / "s").store.manifest["dtype"] == "uint16"
    store = run(tmp_path / "a.txt", tmp_path / "t", dtype="uint32").store
    assert store.manifest["dtype"] == "uint32"
    assert texts_in(store, "train") == ["text"]
    assert StoreSettings().dtype_for(65_536) == np.uint16
    assert StoreSettings().dtype_for(65_537) == np.uint32
    with pytest.raises(ConfigError, match=r"uint16 holds ids up to 65,535.* 70,000: use uint32"):
        StoreSettings(dtype="uint16").dtype_for(70_000)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": 0.5}, "a word other than 'train'"),
        ({"validation": 1.5}, "between 0 and 1"),
        ({"validation": 0.6, "test": 0.5}, r"validation 0\.6 \+ test 0\.5 is 1 or more"),
        ({"../x": 0.1}, "a split's name is a word"),
    ],
)
def test_impossible_splits_are_refused(splits: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StoreSettings(splits=splits)


def test_bad_input_fails_and_what_was_finished_is_kept(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    bad = tmp_path / "corpus" / "b2.jsonl"
    bad.write_text('{"text": "fine"}\n{"txet": "x"}\n')
    options = {"shard_bytes": 3000, "workers": 1}
    with pytest.raises(DataError, match=r"b2\.jsonl:2 .*did you mean 'txet'"):
        run(tmp_path / "corpus", tmp_path / "store", **options)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "store/train").glob("0*")}
    assert len(kept) > 10
    bad.write_text('{"text": "fine"}\n{"text": "x, mended"}\n')
    store = run(tmp_path / "corpus", tmp_path / "store", **options).store
    assert "x, mended" in texts_in(store, "train")
    assert (
        kept.items()
        <= {p: p.stat().st_mtime_ns for p in (tmp_path / "store/train").glob("*")}.items()
    )
    clean = run(tmp_path / "corpus", tmp_path / "clean", **options).store
    assert store.hash == clean.hash
    assert content_of(tmp_path / "store") == content_of(tmp_path / "clean")


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_input_can_be_left_out_and_is_counted(tmp_path: Path, workers: int) -> None:
    texts = write_corpus(tmp_path / "corpus")
    (tmp_path / "corpus/d.jsonl").write_text('{"text": 5}\nnonsense\n{"text": 6}\n')
    (tmp_path / "corpus/e.txt").write_bytes(b"\xff")
    (tmp_path / "corpus/f.txt").write_bytes(b"")
    options = {"on_error": OnError.SKIP, "workers": workers}
    store = run(tmp_path / "corpus", tmp_path / "store", **options).store
    assert texts_in(store, "train") == texts
    assert store.manifest["skipped"] == {
        "empty_file": 1,
        "not_json": 1,
        "not_utf8": 1,
        "text_not_string": 2,
    }


def test_an_error_in_a_worker_process_keeps_its_type_and_message(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    (tmp_path / "corpus/b2.jsonl").write_text("nonsense\n")
    with pytest.raises(DataError, match=r"b2\.jsonl:1 \(byte 0\): not JSON"):
        run(tmp_path / "corpus", tmp_path / "store", shard_bytes=3000, workers=2)


def test_a_source_without_any_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(DataError, match="no text in the source file"):
        run(tmp_path / "a.jsonl", tmp_path / "store")


def test_a_full_disk_keeps_what_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "corpus")
    synced = shards._sync
    left = [20]

    def full_after_a_while(file: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synced(file)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "_sync", full_after_a_while)
    with pytest.raises(StorageError, match="the disk is full; free some space and run again"):
        run(tmp_path / "corpus", tmp_path / "store", shard_bytes=3000, workers=1)
    monkeypatch.setattr(shards, "_sync", synced)
    records = list((tmp_path / "store/unfinished").glob("0*.json"))
    assert len(records) == 6
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "store/train").glob("0*")}
    store = run(tmp_path / "corpus", tmp_path / "store", shard_bytes=3000, workers=1).store
    now = {p: p.stat().st_mtime_ns for p in (tmp_path / "store/train").glob("0*")}
    names = {record.stem for record in records}
    assert all(now[p] == at for p, at in kept.items() if p.stem in names)
    assert store.hash == run(tmp_path / "corpus", tmp_path / "clean", shard_bytes=3000).store.hash


def start_command(corpus: Path, output: Path, workers: int) -> subprocess.Popen[str]:
    """`maxlm data tokenize` in a process of its own."""
    command = [sys.executable, "-m", "maxlm.cli.main", "data", "tokenize", "--tokenizer", "byte"]
    command += ["--source", str(corpus), "--output", str(output), "--shard-bytes", "3000"]
    command += ["--workers", str(workers), "--splits", "validation=0.2"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


def wait_for_records(process: subprocess.Popen[str], output: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and len(list(output.glob("unfinished/0*.json"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_again_and_again_it_repeats_no_finished_shard_and_gives_the_same_store(
    tmp_path: Path, workers: int
) -> None:
    write_corpus(tmp_path / "corpus", 900)
    clean = run(
        tmp_path / "corpus", tmp_path / "clean", shard_bytes=3000, splits={"validation": 0.2}
    )
    output = tmp_path / "store"
    finished: dict[Path, int] = {}
    kills = 0
    for more in (1, 9, 17, 4):
        process = start_command(tmp_path / "corpus", output, workers)
        wait_for_records(process, output, len(list(output.glob("unfinished/0*.json"))) + more)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        for record in output.glob("unfinished/0*.json"):
            for shard in output.glob(f"*/{record.stem}.[tdc]*"):
                finished.setdefault(shard, shard.stat().st_mtime_ns)
    assert kills == 4
    process = start_command(tmp_path / "corpus", output, workers)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert len(finished) > 60
    assert all(shard.stat().st_mtime_ns == at for shard, at in finished.items())
    assert TokenStore(str(output)).hash == clean.store.hash
    assert content_of(output) == content_of(tmp_path / "clean")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_worker_is_told_and_the_next_run_continues(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", 4000)  # so much that the kill falls into the work
    output = tmp_path / "store"
    process = start_command(tmp_path / "corpus", output, 2)
    wait_for_records(process, output, 3)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [p for p in children if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]
    os.kill(int(workers[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "a worker was killed by signal 9" in errors
    assert "run the command again to continue" in errors
    process = start_command(tmp_path / "corpus", output, 2)
    assert process.communicate(timeout=60) and process.returncode == 0


def test_a_store_can_be_written_to_an_object_store(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    local = run(tmp_path / "corpus", tmp_path / "store").store
    result = tokenize([str(tmp_path / "corpus")], tokenizer="byte", output="memory://stores/a")
    assert result.store.hash == local.hash
    assert texts_in(result.store, "train") == texts_in(local, "train")


def test_a_document_separator_makes_documents_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one<|end|>two<|end|>")
    read = ReadOptions(document_separator="<|end|>")
    store = run(tmp_path / "a.txt", tmp_path / "store", read=read).store
    assert texts_in(store, "train") == ["one", "two"]


def test_the_store_keeps_its_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    store = run(tmp_path / "a.txt", tmp_path / "store").store
    assert load_tokenizer(str(tmp_path / "store")).hash == load_tokenizer("byte").hash
    assert store.manifest["tokenizer"]["vocab_size"] == 257


def test_workers_import_no_accelerator_library() -> None:
    code = "import sys, maxlm.data.tokenize.pool; print({'jax', 'pyarrow', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_only_a_single_document_is_cut_by_position(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    settings = {"splits": {"validation": 0.1}, "split_by": SplitBy.POSITION}
    for name, source, where in (
        ("files", tmp_path / "corpus", "source files hold"),
        ("lines", tmp_path / "corpus" / "a.jsonl", r"a\.jsonl holds"),
    ):
        with pytest.raises(ConfigError, match=f"{where} more than one document.*Leave the option"):
            run(source, tmp_path / name, **settings)
    # One document in each of two units.
    (tmp_path / "two.jsonl").write_text('{"text": "one, long"}\n{"text": "two, long"}\n')
    with pytest.raises(ConfigError, match="source file holds more than one document"):
        run(tmp_path / "two.jsonl", tmp_path / "units", **settings, shard_bytes=20)
