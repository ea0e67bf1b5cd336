"""`maxlm data` as people run it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maxlm.cli.main import main

QUICKSTART = [
    "data",
    "tokenize",
    "--source",
    "sample:tinyshakespeare",
    "--tokenizer",
    "byte",
    "--splits",
    "validation=0.1",
    "--split-by",
    "position",
    "--output",
]


def test_the_quickstart_command_writes_a_store_and_finds_it_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "stores/shakespeare")
    assert main([*QUICKSTART, output]) == 0
    printed = capsys.readouterr().out
    assert "train: 1 documents, 1,003,856 tokens, 1,003,854 bytes of text" in printed
    assert "validation: 1 documents, 111,542 tokens" in printed
    assert main([*QUICKSTART, output]) == 0
    assert "is complete; nothing to do" in capsys.readouterr().out
    assert main([*QUICKSTART, output, "--document-markers", "none"]) == 2
    assert 'settings.document_markers: "both" → "none"' in capsys.readouterr().err


def test_inspect_shows_json_windows_and_verifies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\nthree")
    output = str(tmp_path / "store")
    arguments = ["--tokenizer", "byte", "--document-separator", r"\n\n", "--output", output]
    assert main(["data", "tokenize", "--source", str(tmp_path / "a.txt"), *arguments]) == 0
    capsys.readouterr()
    assert main(["data", "inspect", output, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["splits"]["train"]["documents"] == 3
    assert main(["data", "inspect", output]) == 0
    assert "train: 3 documents, 17 tokens" in capsys.readouterr().out
    assert main(["data", "inspect", output, "--window", "10", "--index", "1"]) == 0
    assert "document 2, tokens 0 to 6 of 7" in capsys.readouterr().out
    assert main(["data", "inspect", output, "--verify"]) == 0
    assert "whole; 34 bytes of tokens checked" in capsys.readouterr().out
    assert main(["data", "inspect", output, "--split", "test"]) == 2
    assert "no split 'test'" in capsys.readouterr().err
    assert main(["data", "inspect", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_bad_input_exits_2_or_is_skipped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\nnonsense\n')
    arguments = ["data", "tokenize", "--source", str(tmp_path / "a.jsonl"), "--tokenizer", "byte"]
    arguments += ["--output", str(tmp_path / "store")]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "a.jsonl:2 (byte 16): not JSON" in message
    assert "--on-error skip" in message
    assert main([*arguments, "--on-error", "skip"]) == 0
    assert "left out: 1 not_json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--splits", "validation"], "a split is NAME=SHARE"),
        (["--splits", "validation=x"], "'x' is no number"),
        (["--shard-bytes", "big"], "a size is bytes, or 64KiB, 256MiB, 1GiB"),
        (["--workers", "0"], "must be at least 1"),
        (["--document-separator", ""], "the document separator is empty"),
        (["--tokenizer", "bite"], "did you mean 'byte'"),
    ],
)
def test_values_that_cannot_be_used_say_what_can(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str], message: str
) -> None:
    assert main([*QUICKSTART, str(tmp_path / "store"), *option]) == 2
    assert message in capsys.readouterr().err


def test_help_answers_at_once_and_lists_the_sources() -> None:
    command = [sys.executable, "-m", "maxlm.cli.main", "data", "tokenize", "--help"]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 5  # 0.1 s on a machine that does nothing else
    assert "tfds:NAME_OR_FOLDER:SPLIT" in done.stdout
    code = (
        "import sys, maxlm.cli.data; print({'numpy', 'jax', 'maxlm.data.store'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
