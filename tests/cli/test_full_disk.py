"""A disk that fills up under a command: exit 2, nothing lost, and with more room it goes on.

The disk is a small tmpfs, mounted where only the commands see it and made larger between them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from maxlm.cli.main import main
from maxlm.train.checkpoints import Checkpoints
from maxlm.train.run_folder import RunFolder
from tests.small_run import (
    FLAGS,
    ROOT,
    checksums,
    losses,
    train_here,
    write_quick_config,
    write_text_store,
)

# $1: the disk; $2: its bytes; $3: where its content and what was said go; then the command.
SCRIPT = """
disk=$1 size=$2 result=$3; shift 3
mount -t tmpfs -o size=$size none "$disk" || exit 9
"$@" >"$result/full.txt" 2>&1; echo $? >"$result/full.code"
cp -a "$disk" "$result/full"
mount -o remount,size=256m "$disk" || exit 9
"$@" >"$result/freed.txt" 2>&1; echo $? >"$result/freed.code"
cp -a "$disk" "$result/freed"
"""


def on_a_small_disk(disk: Path, size: int, result: Path, *command: str) -> tuple[str, str]:
    """Run `maxlm COMMAND` on a disk of `size` bytes (it must exit 2), then on a larger one.

    Returns:
        What each said. `result/full` and `result/freed` hold the disk's content after each.
    """
    if shutil.which("unshare") is None:
        pytest.skip("needs `unshare` (Linux) to mount a small disk")
    trial = subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(disk)],
        capture_output=True,
        text=True,
    )
    if trial.returncode:
        pytest.skip(f"a user may mount no small disk here: {trial.stderr.strip()}")
    result.mkdir()
    maxlm = [sys.executable, "-m", "maxlm.cli.main", *command]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", SCRIPT, "sh", str(disk), str(size), str(result), *maxlm],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": FLAGS},  # as `unbroken`
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    said = []
    for moment, code in (("full", "2"), ("freed", "0")):
        said.append((result / f"{moment}.txt").read_text())
        assert (result / f"{moment}.code").read_text().strip() == code, said[-1]
    assert said[0].splitlines()[-1].startswith(f"maxlm {command[0]}: "), said[0]
    assert not any("Traceback" in text for text in said), said
    return said[0], said[1]


def content(folder: Path) -> dict[str, bytes]:
    """Files by path within the folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("full_disk")


@pytest.fixture(scope="module")
def store(folder):
    return write_text_store(folder / "store", 30_000)


@pytest.fixture(scope="module")
def unbroken(folder, store):
    """Twenty steps; checkpoints at 8, 16 and 20."""
    return train_here(write_quick_config(folder / "unbroken", store))


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_tokenizing_onto_a_full_disk_keeps_finished_shards_and_goes_on(tmp_path, workers):
    lines = [json.dumps({"text": f"text {n} " + "x" * (n % 90)}) + "\n" for n in range(1200)]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["data", "tokenize", "--source", str(tmp_path / "a.jsonl"), "--tokenizer", "byte"]
    command += ["--shard-bytes", "4096", "--workers", workers, "--output"]
    said, _ = on_a_small_disk(disk, 300_000, tmp_path / "result", *command, str(disk / "store"))
    assert f"{disk}/store/" in said and "the disk is full; free some space and run again" in said
    full, freed = (content(tmp_path / "result" / name / "store") for name in ("full", "freed"))
    assert "manifest.json" not in full
    recorded = {Path(name).stem for name in full if name.startswith("unfinished/0")}
    kept = {name for name in full if Path(name).parent.name == "train"}
    kept = {name for name in kept if Path(name).stem in recorded}
    assert len(recorded) >= 3 and len(kept) == 3 * len(recorded)
    assert {name: full[name] for name in kept} == {name: freed[name] for name in kept}
    result = tmp_path / "result"
    for name in kept:  # not written again
        times = [(result / m / "store" / name).stat().st_mtime_ns for m in ("full", "freed")]
        assert times[0] == times[1]
    assert main([*command, str(tmp_path / "clean")]) == 0
    assert freed == content(tmp_path / "clean")


@pytest.mark.slow
def test_a_save_onto_a_full_disk_keeps_the_checkpoint_before_and_goes_on_bitwise(
    tmp_path, store, unbroken
):
    config = write_quick_config(tmp_path, store)
    run = RunFolder(str(tmp_path / "runs" / "small"))
    disk = tmp_path / "disk"
    disk.mkdir()
    os.makedirs(run.path)
    os.symlink(disk, run.checkpoints)
    one = sum(f.stat().st_blocks * 512 for f in Path(unbroken.checkpoints, "8").rglob("*"))
    said, told = on_a_small_disk(
        disk, int(one * 1.5), tmp_path / "result", "train", str(config), "--plain"
    )
    assert f"{run.checkpoints}/16: the disk is full" in said
    assert "not saved; the newest complete one is step 8. Free some space and run again" in said
    assert "step 8: saved" in said and "step 16: saved" not in said
    assert "continuing from step 8 of 20" in told
    full, freed = (Checkpoints(str(tmp_path / "result" / name)) for name in ("full", "freed"))
    assert full.steps() == [8] and full.half_written() == []
    assert full.verify(8).good
    assert freed.steps() == [8, 16, 20] and freed.half_written() == []
    assert content(Path(full.path(8))) == content(Path(freed.path(8)))
    for step in freed.steps():
        assert freed.verify(step).good
        found = {name: record.checksum for name, record in freed.describe(step).items()}
        assert found == checksums(unbroken, step)
    assert losses(run) == losses(unbroken)
