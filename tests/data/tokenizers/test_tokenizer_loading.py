"""Loading by path or name, saving, hashes, and what is refused."""

import gzip
import json
import shutil

import pytest
from tiny_tokenizers import (
    EXACT,
    SHARED,
    byte_level_json,
    exact_tokenizer,
    gpt2_files,
    trained,
)

from maxlm import storage
from maxlm.data.tokenizers import load_tokenizer
from maxlm.errors import StorageError, TokenizerError

TEXT = "The fox,  Würde ▁ 人 <s>\n"


def write_gpt2(folder, names=("vocab.json", "merges.txt")):
    folder.mkdir(exist_ok=True)
    for name, content in zip(names, gpt2_files().values(), strict=True):
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", EXACT)
def test_a_saved_tokenizer_is_the_same_wherever_it_lies(name, tmp_path):
    tokenizer = exact_tokenizer(name)
    tokenizer.save(str(tmp_path / "a"))
    first = load_tokenizer(tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "elsewhere")
    first.save(str(tmp_path / "b"))
    for folder in ("elsewhere", "b"):
        again = load_tokenizer(tmp_path / folder)
        assert again.hash == tokenizer.hash
        assert again.encode(TEXT) == tokenizer.encode(TEXT)
        facts = ("kind", "vocab_size", "bos_id", "eos_id", "pad_id", "unk_id", "exact")
        assert [getattr(again, f) for f in facts] == [getattr(tokenizer, f) for f in facts]


def test_a_tokenizer_is_saved_to_and_loaded_from_an_object_store():
    trained("bpe").save("memory://bucket/run/tokenizer")
    assert load_tokenizer("memory://bucket/run/tokenizer").hash == trained("bpe").hash
    assert load_tokenizer("memory://bucket/run").hash == trained("bpe").hash
    model = "memory://bucket/run/tokenizer/tokenizer.model"
    assert load_tokenizer(model).hash == trained("bpe").hash


def test_hashes_differ_by_kind_content_and_specials(tmp_path):
    hashes = {exact_tokenizer(name).hash for name in EXACT}
    assert len(hashes) == len(EXACT)
    (tmp_path / "tokenizer.json").write_bytes(byte_level_json())
    plain = load_tokenizer(tmp_path).hash
    assert plain == exact_tokenizer("hf").hash
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "    "}))
    assert load_tokenizer(tmp_path).hash != plain


def test_a_model_file_and_its_folder_load(tmp_path):
    trained("bpe").save(str(tmp_path / "t"))
    assert load_tokenizer(tmp_path / "t" / "tokenizer.model").hash == trained("bpe").hash
    (tmp_path / "t" / "maxlm_tokenizer.json").unlink()
    assert load_tokenizer(tmp_path / "t").hash == trained("bpe").hash


def test_a_tokenizer_json_loads_plain_compressed_and_by_folder(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(byte_level_json())
    (tmp_path / "x.json.gz").write_bytes(gzip.compress(byte_level_json()))
    paths = (tmp_path, tmp_path / "tokenizer.json", tmp_path / "x.json.gz")
    assert len({load_tokenizer(path).hash for path in paths}) == 1
    assert load_tokenizer(tmp_path).kind == "hf"


def test_gpt2_loads_under_both_pairs_of_names(tmp_path):
    old = load_tokenizer(write_gpt2(tmp_path / "old", ("encoder.json", "vocab.bpe")))
    new = load_tokenizer(write_gpt2(tmp_path / "new"))
    assert old.kind == new.kind == "gpt2"
    assert old.hash == new.hash
    assert old.bos_id == old.eos_id == old.vocab_size - 1


def test_a_run_or_store_gives_its_own_tokenizer(tmp_path):
    trained("bpe").save(str(tmp_path / "runs" / "x" / "tokenizer"))
    (tmp_path / "runs" / "x" / "config.yaml").write_text("{}")
    assert load_tokenizer(tmp_path / "runs" / "x").hash == trained("bpe").hash


def test_specials_are_read_from_the_config_beside(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(byte_level_json())
    config = {"bos_token": {"content": "<|endoftext|>"}, "pad_token": "    "}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.token_text(tokenizer.bos_id) == "<|endoftext|>"
    assert tokenizer.token_text(tokenizer.pad_id) == "    "


def test_truncation_and_padding_of_a_tokenizer_json_are_off(tmp_path):
    spec = json.loads(byte_level_json())
    spec["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    spec["padding"] = {
        "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "!",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    lengths = [len(ids) for ids in load_tokenizer(tmp_path).encode_batch(["abcdef", "g"])]
    assert lengths == [6, 1]


def test_a_tokenizer_that_normalises_says_that_it_is_not_exact(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(byte_level_json({"type": "NFC"}))
    tokenizer = load_tokenizer(tmp_path)
    assert not tokenizer.exact
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == "é"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.model", b"", "not a SentencePiece model.*no pieces"),
        ("x.model", b"\xff\xfenonsense", "not a SentencePiece model"),
        ("tokenizer.json", b"{", "line 1: not JSON"),
        ("tokenizer.json", b"\xff", r"not UTF-8 text \(byte 0\)"),
        ("tokenizer.json", b"[]", "a JSON list, not an object"),
        ("tokenizer.json", b"{}", "has no 'model'"),
        ("tokenizer.json", b'{"!": 0}', "GPT-2 vocabulary is loaded by its folder"),
        ("tokenizer.json", b'{"model": {"type": "?"}}', "the tokenizers library refuses it"),
        ("x.json.gz", b"\x1f\x8b\x08broken", "damaged gzip"),
        ("maxlm_tokenizer.json", b"{", ":1: not JSON"),
        ("maxlm_tokenizer.json", b'{"format_version": 9}', "format version 9"),
        ("maxlm_tokenizer.json", b'{"format_version": 1}', "not a tokenizer's description"),
        ("notes.txt", b"x", "no tokenizer in this folder .it holds notes.txt"),
        ("merges.txt", b"", "has merges.txt but not vocab.json"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_model_cut_short_is_refused(tmp_path):
    (tmp_path / "x.model").write_bytes(trained("bpe")._model[:-1000])
    with pytest.raises(TokenizerError, match=r"x\.model: not a SentencePiece model, or a damaged"):
        load_tokenizer(tmp_path / "x.model")


def test_merges_that_do_not_belong_to_the_vocabulary_are_refused_with_the_line(tmp_path):
    folder = write_gpt2(tmp_path / "gpt2")
    (folder / "merges.txt").write_text("#version: 0.2\nh e\nq q\n")
    with pytest.raises(TokenizerError, match="merges: line 3: token 'qq' is not in the vocabulary"):
        load_tokenizer(folder)
    (folder / "merges.txt").write_text("h e\nhe\n")
    with pytest.raises(TokenizerError, match="merges: line 2: 'he' is not two tokens"):
        load_tokenizer(folder)


def test_a_flipped_byte_in_a_saved_tokenizer_is_found(tmp_path):
    folder = str(tmp_path / "t")
    trained("bpe").save(folder)
    path = storage.join(folder, "tokenizer.model")
    content = bytearray(storage.read_bytes(path))
    content[5000] ^= 1
    storage.write_bytes(path, bytes(content))
    with pytest.raises(TokenizerError, match=r"tokenizer\.model: damaged: sha256"):
        load_tokenizer(folder)
    storage.remove_file(path)
    with pytest.raises(TokenizerError, match=r"tokenizer\.model: missing"):
        load_tokenizer(folder)


def test_changed_specials_in_a_saved_tokenizer_are_found(tmp_path):
    exact_tokenizer("gpt2").save(str(tmp_path))
    path = tmp_path / "maxlm_tokenizer.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps({**description, "eos_id": 0}))
    with pytest.raises(TokenizerError, match="damaged: its content hashes to"):
        load_tokenizer(tmp_path)


def test_what_is_missing_is_refused_with_what_could_be_named(tmp_path):
    with pytest.raises(TokenizerError, match=r"bytes: no such.*did you mean 'byte'"):
        load_tokenizer("bytes")
    with pytest.raises(TokenizerError, match="an empty folder"):
        load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="no such tokenizer"):
        load_tokenizer(tmp_path / "absent.model")
    (tmp_path / "a.model").write_bytes(b"")
    (tmp_path / "b.model").write_bytes(b"")
    with pytest.raises(TokenizerError, match=r"several tokenizers: a\.model, b\.model"):
        load_tokenizer(tmp_path)


def test_a_full_or_forbidden_place_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError):
        trained("bpe").save(str(tmp_path / "file" / "tokenizer"))


@pytest.mark.skipif(not SHARED.exists(), reason="the real tokenizers are not on this machine")
@pytest.mark.parametrize(
    ("name", "kind", "vocab_size", "bos", "eos", "exact"),
    [
        ("asset-gpt2-bpe", "gpt2", 50257, 50256, 50256, True),
        ("asset-hf-tokenizer-json", "hf", 50280, 50279, 50279, False),
        ("asset-model-stories260k/hf", "hf", 512, 1, 2, False),
        ("asset-sentencepiece-models/mistral-v1.model", "sentencepiece", 32000, 1, 2, False),
    ],
)
def test_real_tokenizers_load_as_what_they_are(name, kind, vocab_size, bos, eos, exact):
    found = load_tokenizer(SHARED / name)
    facts = (found.kind, found.vocab_size, found.bos_id, found.eos_id, found.exact)
    assert facts == (kind, vocab_size, bos, eos, exact)
    assert found.decode(found.encode("Two words, and a third.")) == "Two words, and a third."


@pytest.mark.skipif(not SHARED.exists(), reason="the real tokenizers are not on this machine")
def test_sentencepiece_and_tokenizer_json_of_one_vocabulary_agree():
    folder = SHARED / "asset-model-stories260k" / "hf"
    one, other = load_tokenizer(folder / "tokenizer.model"), load_tokenizer(folder)
    for text in ("Once upon a time, there was a girl.", "Ünïcode 人", "two  spaces\nand lines"):
        ids = one.encode(text)
        assert ids == other.encode(text)
        assert one.decode(ids) == other.decode(ids) == text
        assert one.decode_bytes(ids) == other.decode_bytes(ids) == b" " + text.encode()
    assert one.token_bytes().tolist() == other.token_bytes().tolist()
