"""Looking into stores: counts and lengths, windows with their documents, damage of every file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maxlm.data.inspect import (
    describe_store,
    format_description,
    format_window,
    read_window,
    verify_store,
)
from maxlm.data.store import TokenStore
from maxlm.data.tokenize.run import tokenize
from maxlm.data.tokenize.settings import StoreSettings
from maxlm.errors import DataError

TEXTS = ["ab", "cdefgh", "ij", "k" * 40]


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    output = str(tmp_path / "store")
    return tokenize(
        [str(corpus)], tokenizer="byte", output=output, settings=StoreSettings(shard_bytes=40)
    ).store


def test_a_description_counts_documents_tokens_and_lengths(store: TokenStore) -> None:
    found = describe_store(store)
    train = found["splits"]["train"]
    assert (train["documents"], train["tokens"], train["bytes"]) == (4, 58, 50)
    assert train["lengths"] == {"min": 4, "median": 6.0, "mean": 14.5, "p90": 31.8, "max": 42}
    assert [(b["from"], b["to"], b["documents"]) for b in train["histogram"]] == [
        (4, 7, 2),
        (8, 15, 1),
        (16, 31, 0),
        (32, 63, 1),
    ]
    text = format_description(found)
    assert "train: 4 documents, 58 tokens, 50 bytes of text" in text
    assert "corpus.jsonl  jsonl" in text
    assert "tokenizer  byte, 257 ids" in text


def test_a_window_shows_where_documents_begin_and_end(store: TokenStore) -> None:
    window = read_window(store, "train", 0, 9, store.tokenizer())
    assert [part["tokens"] for part in window["documents"]] == [
        [256, 97, 98, 256],
        [256, 99, 100, 101, 102],
    ]
    text = format_window(window)
    assert "document 0, tokens 0 to 3 of 4" in text
    assert "‹<|endoftext|>›ab‹<|endoftext|>›" in text
    assert "document 1, tokens 0 to 4 of 8" in text
    last = read_window(store, "train", 6, 9, store.tokenizer())
    assert (last["start"], last["stop"]) == (54, 58)
    assert last["documents"][0]["first_token"] == 38


def test_a_window_that_is_not_there_says_which_are(store: TokenStore) -> None:
    with pytest.raises(DataError, match="7 windows of 9 tokens: the index 7 is none of 0 to 6"):
        read_window(store, "train", 7, 9, store.tokenizer())
    with pytest.raises(DataError, match=r"no split 'trian' \(did you mean 'train'\?\)"):
        read_window(store, "trian", 0, 9, store.tokenizer())


def test_control_characters_of_a_text_do_not_reach_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\x1b[2Jb\n")
    output = str(tmp_path / "store")
    store = tokenize([str(tmp_path / "a.txt")], tokenizer="byte", output=output).store
    assert "a␛[2Jb\n" in format_window(read_window(store, "train", 0, 20, store.tokenizer()))


def test_a_whole_store_is_verified(store: TokenStore) -> None:
    good: list[str] = []
    assert verify_store(store, good.append) == 58 * 2
    shards = store.manifest["splits"]["train"]["shards"]
    assert good == [f"train/{shard['name']}" for shard in shards]
    assert len(good) > 1


@pytest.mark.parametrize("kind", ["tokens", "documents", "crc"])
def test_a_flipped_bit_of_any_file_is_found(store: TokenStore, kind: str) -> None:
    path = sorted((Path(store.path) / "train").glob(f"*.{kind}"))[-1]
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"1 part is damaged:\n.*{path.stem}"):
        verify_store(TokenStore(store.path))


def test_all_damage_is_named_at_once(store: TokenStore) -> None:
    for path in (Path(store.path) / "train").glob("*.tokens"):
        path.write_bytes(path.read_bytes()[:-2])
    description = Path(store.path) / "tokenizer" / "maxlm_tokenizer.json"
    description.write_text(description.read_text().replace("256", "255"))
    count = len(store.manifest["splits"]["train"]["shards"]) + 1
    with pytest.raises(DataError, match=f"{count} parts are damaged"):
        verify_store(TokenStore(store.path))
