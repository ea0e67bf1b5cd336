"""Reading text for training and measuring: what comes out, and errors that name the place."""

import gzip
import json
import zipfile

import pytest

from maxlm.data.tokenizers import corpus
from maxlm.data.tokenizers.corpus import find_files, read_texts
from maxlm.errors import DataError


def write(path, content: bytes):
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return str(path)


def texts(*paths, **options):
    return [record.text for record in read_texts(paths, **options)]


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
    records = list(read_texts([path], group_field="lang"))
    assert [(r.text, r.group) for r in records] == [("one\ntwo", "en"), ("人", "zh")]


def test_an_archive_gives_its_text_files_as_files(tmp_path):
    path = str(tmp_path / "x.zip")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/b.txt", "B")
        archive.writestr("x/a.txt", "A")
        archive.writestr("x/image.png", b"\xff")
    records = list(read_texts([path]))
    assert [(r.file, r.text) for r in records] == [
        (f"{path}:x/a.txt", "A"),
        (f"{path}:x/b.txt", "B"),
    ]


def test_files_are_found_by_path_pattern_and_folder(tmp_path):
    for name in ("b.txt", "a.txt", "c.jsonl", "other.bin"):
        write(tmp_path / name, b"x")
    a, b, c = (str(tmp_path / name) for name in ("a.txt", "b.txt", "c.jsonl"))
    assert find_files([str(tmp_path / "*.txt"), c]) == [a, b, c]
    assert find_files([str(tmp_path)]) == [a, b, c]


@pytest.mark.parametrize("missing", ["absent.txt", "no*.txt"])
def test_a_missing_file_is_refused(tmp_path, missing):
    with pytest.raises(DataError, match="no such file"):
        find_files([str(tmp_path / missing)])


def test_a_folder_without_text_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no text in this folder: it has no file \*\.txt"):
        find_files([str(tmp_path)])


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
    with pytest.raises(DataError, match=rf"x\.txt:{line}: not UTF-8 text: .* at byte {byte} "):
        texts(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "ok"}\n{"text": \n', r":2: not JSON"),
        (b'{"text": "ok"}\n{"txt": "x", "id": 3}\n', r":2: no text in the field 'text'.*id, txt"),
        (b'{"text": null}', r":1: no text in the field 'text'"),
        (b"[1]", r":1: no text.*a JSON list"),
        (b'{"text": "\xff"}', r":1: not UTF-8"),
    ],
)
def test_a_bad_json_line_is_refused_with_its_number(tmp_path, content, message):
    with pytest.raises(DataError, match=rf"x\.jsonl{message}"):
        texts(write(tmp_path / "x.jsonl", content))


@pytest.mark.parametrize("name", ["x.txt.gz", "x.jsonl.gz"])
def test_compression_cut_short_is_refused(tmp_path, name):
    whole = gzip.compress(b'{"text": "some text that is long enough"}\n' * 100)
    (tmp_path / name).write_bytes(whole[:-20])
    with pytest.raises(DataError, match=rf"{name}: damaged or cut short"):
        texts(str(tmp_path / name))
    (tmp_path / name).write_bytes(b"not gzip")
    with pytest.raises(DataError, match=rf"{name}: damaged or cut short"):
        texts(str(tmp_path / name))


def test_a_damaged_archive_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"x\.zip: damaged zip"):
        texts(write(tmp_path / "x.zip", b"PK not really"))
