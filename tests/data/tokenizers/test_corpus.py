"""Reading text for training and measuring: what comes out, and errors that name the place."""

import gzip
import json
import zipfile

import pytest

from maxlm.data.document import OnError, Problems
from maxlm.data.sources.finding import find_files
from maxlm.data.tokenizers import corpus
from maxlm.data.tokenizers.corpus import read_texts
from maxlm.errors import ConfigError, DataError


def write(path, content: bytes):
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return str(path)


def texts(*paths, **options):
    return [record.text for record in records(*paths, **options)]


def records(*paths, problems=None, **options):
    return list(read_texts(find_files(paths), problems or Problems(), **options))


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_plain_text_comes_as_it_is_in_blocks(tmp_path, monkeypatch, name):
    monkeypatch.setattr(corpus, "_BLOCK_BYTES", 7)
    text = "Würde\r\n人人生而自由\n\ufeffno newline at the end"
    found = texts(write(tmp_path / name, text.encode()))
    assert len(found) > 3
    assert "".join(found) == text


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_json_lines_give_a_text_each(tmp_path, name):
    lines = [{"text": "one\ntwo", "lang": "en"}, {"text": "人", "lang": "zh"}]
    path = write(tmp_path / name, b"\n\n".join(json.dumps(line).encode() for line in lines))
    assert texts(path) == ["one\ntwo", "人"]
    found = records(path, group_field="lang")
    assert [(r.text, r.group) for r in found] == [("one\ntwo", "en"), ("人", "zh")]


def test_lines_keep_their_groups_when_others_are_skipped(tmp_path):
    content = b'{"text": "a", "l": "x"}\nbroken\n\n{"text": "", "l": "y"}\n{"text": "b", "l": "z"}'
    problems = Problems(OnError.SKIP)
    found = records(write(tmp_path / "a.jsonl", content), problems=problems, group_field="l")
    assert [(r.text, r.group) for r in found] == [("a", "x"), ("b", "z")]
    assert problems.skipped == {"not_json": 1, "empty_text": 1}


def test_only_json_lines_have_groups(tmp_path):
    with pytest.raises(ConfigError, match=r"a\.txt: only JSON lines"):
        records(write(tmp_path / "a.txt", b"x"), group_field="lang")


def test_an_archive_gives_its_text_files_as_files(tmp_path):
    path = str(tmp_path / "x.zip")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/b.txt", "B")
        archive.writestr("x/a.txt", "A")
        archive.writestr("x/image.png", b"\xff")
    assert [(r.group, r.text) for r in records(path)] == [("x/a.txt", "A"), ("x/b.txt", "B")]


@pytest.mark.parametrize("block", [3, 8, 1 << 20])
@pytest.mark.parametrize(
    ("content", "line", "byte"),
    [(b"fine\n\xe4\xba\xba\nbad \xff here\n", 3, 13), (b"cut \xe4\xba", 1, 4), (b"\x80", 1, 0)],
)
def test_invalid_utf8_is_refused_with_line_and_byte(
    tmp_path, monkeypatch, block, content, line, byte
):
    monkeypatch.setattr(corpus, "_BLOCK_BYTES", block)
    path = write(tmp_path / "x.txt", content)
    with pytest.raises(DataError, match=rf"x\.txt:{line} \(byte {byte}\): not UTF-8 text"):
        texts(path)
    problems = Problems(OnError.SKIP)
    kept = "".join(record.text for record in records(path, problems=problems))
    assert content.decode(errors="ignore").startswith(kept)
    assert problems.skipped == {"not_utf8": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "ok"}\n{"text": \n', r":2 .*not JSON"),
        (b'{"text": "ok"}\n{"txt": "x", "id": 3}\n', r":2 .*no field 'text'.*id, txt"),
        (b'{"text": null}', r":1 .*the field 'text' is a NoneType"),
        (b"[1]", r":1 .*no field 'text'.*a JSON list"),
        (b'{"text": "\xff"}', r":1 .*not UTF-8"),
    ],
)
def test_a_bad_json_line_is_refused_with_its_number(tmp_path, content, message):
    with pytest.raises(DataError, match=rf"x\.jsonl{message}"):
        texts(write(tmp_path / "x.jsonl", content))


@pytest.mark.parametrize("name", ["x.txt.gz", "x.jsonl.gz"])
def test_compression_cut_short_is_refused(tmp_path, name):
    whole = gzip.compress(b'{"text": "some text that is long enough"}\n' * 100)
    (tmp_path / name).write_bytes(whole[:-20])
    with pytest.raises(DataError, match=rf"{name}: gzip file is cut short"):
        texts(str(tmp_path / name))
    (tmp_path / name).write_bytes(b"not gzip")
    with pytest.raises(DataError, match=rf"{name}: damaged gzip file"):
        texts(str(tmp_path / name))


def test_a_damaged_archive_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"x\.zip: damaged zip"):
        texts(write(tmp_path / "x.zip", b"PK not really"))
