"""`maxlm tokenizer`: from files to a tokenizer, to ids, to text, to a table; errors exit 2."""

import io
import json
import re
import sys
import time

import pytest

from maxlm.cli.main import main

LINES = "The quick brown fox jumps over the lazy dog, and the dog sleeps in the sun.\n" * 20


@pytest.fixture
def trained(tmp_path):
    (tmp_path / "a.txt").write_text(LINES + "Würde 人\n", encoding="utf-8")
    folder = str(tmp_path / "tokenizer")
    command = ["tokenizer", "train", "--input", str(tmp_path / "*.txt"), "--vocab-size", "300"]
    assert main([*command, "--output", folder]) == 0
    return folder


def standard_input(monkeypatch, content: bytes):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def test_text_goes_to_ids_and_back_through_pipes(trained, capsys, monkeypatch):
    text = "  The fox ▁ <s>\r\n人\n"
    capsys.readouterr()
    standard_input(monkeypatch, text.encode())
    assert main(["tokenizer", "encode", trained]) == 0
    ids = capsys.readouterr().out
    standard_input(monkeypatch, ids.encode())
    assert main(["tokenizer", "decode", trained]) == 0
    assert capsys.readouterr().out == text
    assert main(["tokenizer", "decode", trained, *ids.split()]) == 0
    assert capsys.readouterr().out == text


def test_pieces_are_listed_with_their_bytes(capsys):
    assert main(["tokenizer", "encode", "byte", "a é", "--pieces"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        ["97", "1", '"a"'],
        ["32", "1", '"<0x20>"'],
        ["195", "1", '"<0xC3>"'],
        ["169", "1", '"<0xA9>"'],
    ]


def test_statistics_come_as_a_table_and_as_json(trained, tmp_path, capsys):
    (tmp_path / "b.jsonl").write_text('{"text": "the dog", "lang": "en"}\n{"text": "人"}\n')
    paths = [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")]
    capsys.readouterr()
    assert main(["tokenizer", "stats", trained, *paths]) == 0
    table = capsys.readouterr().out
    assert "any text comes back" in table
    assert [line.split()[-1] for line in table.splitlines()[2:5]] == ["a.txt", "b.jsonl", "total"]
    assert "of 300 ids used" in table.splitlines()[-1]
    assert main(["tokenizer", "stats", trained, paths[1], "--json", "--by", "lang"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [group["group"] for group in found["groups"]] == ["en", "(none)"]
    assert found["total"]["bytes"] == len("the dog") + len("人".encode())
    assert found["total"]["not_restored"] == 0


def test_training_does_not_overwrite_unless_told(trained, tmp_path, capsys):
    command = ["tokenizer", "train", "--input", str(tmp_path / "a.txt"), "--vocab-size", "297"]
    assert main([*command, "--output", trained]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main([*command, "--output", trained, "--overwrite", "--kind", "unigram"]) == 0
    assert "297 ids" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["decode", "byte", "72", "300"], "id 300 at position 1 .*its 257 ids are 0 … 256"),
        (["decode", "byte", "72", "x"], "'x' at position 1 is no id"),
        (["encode", "bite", "text"], "did you mean 'byte'"),
        (["stats", "byte", "absent.txt"], "absent.txt: no such file"),
        (["train", "--input", "EMPTY", "--vocab-size", "300", "--output", "OUT"], "no text"),
        (
            ["train", "--input", "BAD", "--vocab-size", "300", "--output", "OUT"],
            "bad.txt:1 .byte 5.: not UTF",
        ),
        (["train", "--input", "TEXT", "--vocab-size", "9000", "--output", "OUT"], "at most"),
        (
            ["train", "--input", "TEXT", "--vocab-size", "300", "--output", "OUT", "--kind", "bep"],
            "did you mean 'bpe'",
        ),
    ],
)
def test_a_mistake_exits_2_with_what_was_wrong(tmp_path, capsys, arguments, message):
    paths = {"EMPTY": "empty.txt", "BAD": "bad.txt", "TEXT": "text.txt", "OUT": "out"}
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "bad.txt").write_bytes(b"fine \xff")
    (tmp_path / "text.txt").write_text(LINES)
    real = [str(tmp_path / paths[word]) if word in paths else word for word in arguments]
    assert main(["tokenizer", *real]) == 2
    error = capsys.readouterr().err
    assert error.startswith("maxlm tokenizer: ")
    assert re.search(message, error)
    assert not (tmp_path / "out").exists()


def test_invalid_utf8_on_standard_input_is_refused(capsys, monkeypatch):
    standard_input(monkeypatch, b"ab\xff")
    assert main(["tokenizer", "encode", "byte"]) == 2
    assert "standard input: not UTF-8 text (byte 2)" in capsys.readouterr().err


@pytest.mark.parametrize("action", [[], ["train"], ["encode"], ["decode"], ["stats"]])
def test_help_is_quick(action, capsys):
    started = time.monotonic()
    with pytest.raises(SystemExit) as stopped:
        main(["tokenizer", *action, "--help"])
    assert stopped.value.code == 0
    assert time.monotonic() - started < 0.5
    assert "usage: maxlm tokenizer" in capsys.readouterr().out
