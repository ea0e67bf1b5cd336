"""Sources: what every format gives, by stretches and whole, and what bad input says."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from maxlm import storage
from maxlm.data.document import OnError, Problems
from maxlm.data.sources import byte_stream
from maxlm.data.sources.finding import find_files
from maxlm.data.sources.reading import open_reader, read_documents, read_encoded
from maxlm.data.sources.source_file import ReadOptions, SourceFile, Stretch
from maxlm.errors import DataError

TEXTS = ["one", "two\nlines", "drei ü 三", "x" * 300, "the end"]


def texts_of(source: Path | str, **options: object) -> list[str]:
    files = find_files([str(source)])
    return [d.text for d in read_documents(files, ReadOptions(**options), Problems())]  # type: ignore[arg-type]


def skipped_of(source: Path | str, **options: object) -> tuple[list[str], dict[str, int]]:
    problems = Problems(OnError.SKIP)
    files = find_files([str(source)])
    texts = [d.text for d in read_documents(files, ReadOptions(**options), problems)]  # type: ignore[arg-type]
    return texts, dict(problems.skipped)


def texts_by_stretches(
    file: SourceFile, options: ReadOptions, size: int, problems: Problems
) -> list[str]:
    """Texts read stretch by stretch, each by a fresh reader, the last stretches first."""
    stretches = open_reader(file, options).stretches(size)
    if stretches is None:
        reader, stretches = open_reader(file, options), []
        while not stretches or not reader.ended:
            stretches.append(Stretch(len(stretches) * size, (len(stretches) + 1) * size))
            list(reader.read(stretches[-1], Problems(OnError.SKIP)))
    found: list[list[str]] = []
    for stretch in reversed(stretches):
        read = read_encoded(open_reader(file, options), stretch, options, problems)
        found.insert(0, [document.text for document, _ in read])
    return [text for texts in found for text in texts]


def json_lines(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"id": n, "text": t}).encode() + b"\n" for n, t in enumerate(texts))


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_json_lines_give_their_texts_compressed_or_not(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(json_lines(TEXTS), suffix))
    assert texts_of(path) == TEXTS


def compress(content: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        half = len(content) // 2  # two members, as concatenated files have
        return gzip.compress(content[:half]) + gzip.compress(content[half:])
    return zstandard.compress(content) if suffix == ".zst" else content


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40), max_size=12),
    size=st.integers(1, 200),
    suffix=st.sampled_from(["", ".gz", ".zst"]),
)
def test_stretches_of_json_lines_together_give_the_whole_file(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], size: int, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("stretches") / f"a.jsonl{suffix}"
    path.write_bytes(compress(json_lines(["first", *texts]), suffix))
    (file,) = find_files([str(path)])
    assert texts_by_stretches(file, ReadOptions(), size, Problems()) == ["first", *texts]


@settings(max_examples=60, deadline=None)
@given(
    content=st.text("ab\n", min_size=1, max_size=200),
    separator=st.sampled_from(["\n", "\n\n", "aa", "aba"]),
    size=st.integers(1, 50),
    block=st.integers(1, 40),
)
def test_a_separator_cuts_a_text_as_split_does_wherever_stretches_and_blocks_end(
    tmp_path_factory: pytest.TempPathFactory, content: str, separator: str, size: int, block: int
) -> None:
    path = tmp_path_factory.mktemp("separated") / "a.txt"
    path.write_text(content)
    (file,) = find_files([str(path)])
    options = ReadOptions(document_separator=separator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byte_stream, "BLOCK_BYTES", block)
        found = texts_by_stretches(file, options, size, Problems())
    assert found == [text for text in content.split(separator) if text]


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("two\n\nparagraphs\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("ü".encode()))
    assert texts_of(tmp_path) == ["two\n\nparagraphs\n", "ü"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone;two")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "three"}\n')
    assert texts_of(tmp_path) == ["one;two", "three"]
    assert texts_of(tmp_path, document_separator=";") == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        (b"{oops}", "not_json", r"a\.jsonl:2 \(byte 16\): not JSON"),
        (b'{"txt": "x"}', "no_text_field", r":2 .*no field 'text' \(did you mean 'txt'\?\)"),
        (b'["x"]', "no_text_field", r":2 .*the line is a JSON list"),
        (b'{"text": 5}', "text_not_string", r":2 .*the field 'text' is a int, not a string"),
        (b'{"text": "\xff"}', "not_utf8", r":2 .*not UTF-8"),
        (b'{"text": "\\ud800"}', "not_utf8", r"lone surrogate U\+D800"),
        (b'{"text": "' + b"y" * 50 + b'"}', "document_too_large", r"50 bytes .* limit of 40"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_bad_line_is_named_or_counted(
    tmp_path: Path, line: bytes, reason: str, message: str, suffix: str
) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(b'{"text": "one"}\n' + line + b'\n{"text": "two"}\n', suffix))
    with pytest.raises(DataError, match=message.replace(r"a\.jsonl:", rf"a\.jsonl{suffix}:")):
        texts_of(path, max_document_bytes=40)
    assert skipped_of(path, max_document_bytes=40) == (["one", "two"], {reason: 1})


def test_a_line_far_above_the_limit_is_passed_over_without_being_held(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "' + b"y" * (6 << 20) + b'"}\n{"text": "two"}\n')
    assert skipped_of(path, max_document_bytes=10) == (["two"], {"document_too_large": 1})


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_file_cut_short_keeps_its_whole_lines_and_is_counted_once(
    tmp_path: Path, suffix: str
) -> None:
    texts = [f"{n} " + "".join(chr(97 + (n * k) % 26) for k in range(99)) for n in range(2000)]
    content = json_lines(texts)
    packed = gzip.compress(content) if suffix == ".gz" else zstandard.compress(content)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(packed[: len(packed) * 2 // 3])
    with pytest.raises(DataError, match=r"a\.jsonl.*is cut short after [\d,]+ bytes"):
        texts_of(path)
    whole, skipped = skipped_of(path)
    assert skipped == {"damaged_or_cut_short": 1}
    assert whole == texts[: len(whole)]
    problems = Problems(OnError.SKIP)
    (file,) = find_files([str(path)])
    assert texts_by_stretches(file, ReadOptions(), 5000, problems) == whole
    assert problems.skipped["damaged_or_cut_short"] == 1


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_file_that_is_not_compressed_as_its_name_says_is_named(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(b"plain text")
    with pytest.raises(DataError, match=r"a\.txt.*damaged"):
        texts_of(path)


@pytest.mark.parametrize(
    ("content", "reason", "message"),
    [
        (b"", "empty_file", r"a\.txt: the file is empty"),
        (b"ab\ncd\xff", "not_utf8", r"a\.txt:2 \(byte 5\): not UTF-8.*0xFF"),
        (b"x" * 41, "document_too_large", r"a\.txt: a document of 41 bytes .* limit of 40"),
    ],
)
def test_a_bad_text_file_is_named_or_counted(
    tmp_path: Path, content: bytes, reason: str, message: str
) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        texts_of(tmp_path / "a.txt", max_document_bytes=40)
    assert skipped_of(tmp_path / "a.txt", max_document_bytes=40) == ([], {reason: 1})


def test_empty_texts_are_counted_and_are_no_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n\n{"text": "x"}\n')
    problems = Problems(OnError.FAIL)
    files = find_files([str(tmp_path / "a.jsonl")])
    assert [d.text for d in read_documents(files, ReadOptions(), problems)] == ["x"]
    assert problems.skipped == {"empty_text": 1}


def write_parquet(path: Path, texts: list[str | None], rows: int = 2) -> None:
    table = pa.table({"text": pa.array(texts, pa.string()), "n": list(range(len(texts)))})
    pq.write_table(table, path, row_group_size=rows)


def test_parquet_is_read_by_row_groups(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", list(TEXTS))
    assert texts_of(tmp_path / "a.parquet") == TEXTS
    (file,) = find_files([str(tmp_path / "a.parquet")])
    stretches = open_reader(file, ReadOptions()).stretches(1)
    assert stretches == [Stretch(0, 1), Stretch(1, 2), Stretch(2, None)]
    assert texts_by_stretches(file, ReadOptions(), 1, Problems()) == TEXTS
    documents = list(read_documents([file], ReadOptions(), Problems()))
    assert [d.position for d in documents] == [0, 1, 2, 3, 4]


def test_bad_parquet_is_named_or_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, ["one", None, "two"])
    with pytest.raises(DataError, match=r"a\.parquet, row 1: the column 'text' is null"):
        texts_of(path)
    assert skipped_of(path) == (["one", "two"], {"no_text_field": 1})
    with pytest.raises(DataError, match=r"no column 'txt' \(did you mean 'text'\?\)"):
        texts_of(path, text_field="txt")
    with pytest.raises(DataError, match="the column 'n' holds int64, not strings"):
        texts_of(path, text_field="n")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as parquet"):
        texts_of(path)
    assert skipped_of(path) == ([], {"file_not_readable": 1})


def save_to_disk(folder: Path, texts: list[str], shards: int = 2) -> None:
    """The files that Hugging Face's `Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True)
    names = []
    for shard in range(shards):
        names.append(f"data-{shard:05d}-of-{shards:05d}.arrow")
        table = pa.table({"text": texts[shard::shards]})
        with pa.ipc.new_stream(folder / names[-1], table.schema) as writer:
            writer.write_table(table, max_chunksize=1)
    files = [{"filename": name} for name in names]
    (folder / "state.json").write_text(json.dumps({"_data_files": files}))
    (folder / "dataset_info.json").write_text("{}")
    (folder / "cache-123.arrow").write_bytes(b"left over")


def test_a_saved_hugging_face_data_set_is_read_from_its_arrow_files(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "train", TEXTS)
    assert texts_of(tmp_path / "train") == TEXTS[::2] + TEXTS[1::2]
    file = find_files([str(tmp_path / "train")])[0]
    assert texts_by_stretches(file, ReadOptions(), 1, Problems()) == TEXTS[::2]
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert texts_of(tmp_path) == TEXTS[::2] + TEXTS[1::2]
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match="with the splits train, test: name the one to read"):
        texts_of(tmp_path)


def test_a_saved_data_set_with_a_missing_file_is_refused(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "d", TEXTS)
    (tmp_path / "d" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"names data-00001-of-00002\.arrow, which is missing"):
        find_files([str(tmp_path / "d")])


def test_a_saved_data_set_whose_rows_were_only_selected_is_refused(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "d", TEXTS)
    state = json.loads((tmp_path / "d/state.json").read_text())
    state["_indices_files"] = [{"filename": "indices.arrow"}]
    (tmp_path / "d/state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match="flatten_indices"):
        find_files([str(tmp_path / "d")])


def test_a_tfds_builder_of_array_records_is_read_without_tensorflow(tmp_path: Path) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyTexts(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):  # type: ignore[no-untyped-def]
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):  # type: ignore[no-untyped-def]
            return {"train": self._generate_examples()}

        def _generate_examples(self):  # type: ignore[no-untyped-def]
            for number, text in enumerate(TEXTS):
                yield number, {"text": text}

    builder = TinyTexts(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    source = f"tfds:{builder.data_dir}:train"
    found = texts_of(source)
    assert sorted(found) == sorted(TEXTS)
    (file,) = find_files([source])
    assert file.name == "tfds:tiny_texts/1.0.0:train"
    assert texts_by_stretches(file, ReadOptions(), 10, Problems()) == found
    with pytest.raises(DataError, match=r"no split 'trian' \(did you mean 'train'\?\)"):
        find_files([f"tfds:{builder.data_dir}:trian"])
    with pytest.raises(DataError, match=r"no feature 'txt' \(did you mean 'text'\?\)"):
        texts_of(source, text_field="txt")


def test_names_are_relative_to_what_was_named_and_sorted(tmp_path: Path) -> None:
    for name in ["b/2.txt", "b/1.txt", "a/3.jsonl", "a/.hidden.txt", "a/picture.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert [f.name for f in find_files([str(tmp_path)])] == ["a/3.jsonl", "b/1.txt", "b/2.txt"]
    assert [f.name for f in find_files([f"{tmp_path}/b/*.txt"])] == ["1.txt", "2.txt"]
    assert [f.name for f in find_files([f"{tmp_path}/*/*.txt"])] == ["b/1.txt", "b/2.txt"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing.txt", "no such file"),
        ("*.parquet", "nothing matches it"),
        ("sample:tinyshakespear", r"did you mean 'tinyshakespeare'\?"),
        ("table.csv", r"\.csv is not read: convert it to JSON lines or Parquet"),
        ("tfds:train", "a TFDS source is tfds:NAME_OR_FOLDER:SPLIT"),
        (".", "no text in this folder"),
    ],
)
def test_a_source_that_is_not_there_says_what_sources_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(DataError, match=message):
        find_files([source])


def test_json_is_read_as_json_lines_and_an_unknown_name_as_text(tmp_path: Path) -> None:
    (tmp_path / "c4.json.gz").write_bytes(gzip.compress(json_lines(TEXTS)))
    (tmp_path / "dataset_info.json").write_text("{}")
    assert texts_of(tmp_path) == TEXTS
    (tmp_path / "README").write_text("read me")
    assert texts_of(tmp_path / "README") == ["read me"]


def test_objects_are_found_by_name_by_folder_and_by_pattern() -> None:
    for name in ("a.jsonl", "b.jsonl", "c.png"):
        storage.write_bytes(f"memory://corpus/{name}", json_lines([name]))
    assert texts_of("memory://corpus/a.jsonl") == ["a.jsonl"]
    assert texts_of("memory://corpus") == ["a.jsonl", "b.jsonl"]
    assert texts_of("memory://corpus/b*") == ["b.jsonl"]
    with pytest.raises(DataError, match="nothing matches it as a pattern"):
        find_files(["memory://corpus/x*"])


def test_a_file_named_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="named twice"):
        find_files([str(tmp_path / "a.txt"), f"{tmp_path}/*.txt"])


def test_the_sample_is_the_known_text() -> None:
    (text,) = texts_of("sample:tinyshakespeare")
    assert len(text) == 1_115_394
    assert text.startswith("First Citizen:")
