"""A run over real token stores: what is on disk is what the batches hold; mismatches are refused."""

import json

import numpy as np
import pytest
from test_store import write_store

from maxlm.config.schema import DataConfig, parse_duration
from maxlm.data.open_sources import open_loader, open_sources
from maxlm.data.windows import eval_batches
from maxlm.errors import ConfigError, DataError


def store_at(path, seed: int = 0):
    path.mkdir()
    lengths = np.random.default_rng(seed).integers(2, 60, 40)
    tokens = np.random.default_rng(seed).integers(0, 257, lengths.sum())
    documents = np.split(tokens, np.cumsum(lengths)[:-1])
    write_store(path, [documents[:15], documents[15:]])
    return tokens


def config_of(length: int = 16, tokenizer: str | None = None, **stores) -> DataConfig:
    mixture = {name: {"store": str(store)} for name, store in stores.items()}
    return DataConfig.model_validate(
        {"mixture": mixture, "length": length, "tokenizer": tokenizer, "workers": 2}
    )


def test_an_epoch_of_a_store_is_its_tokens(tmp_path) -> None:
    tokens = store_at(tmp_path / "a")
    data = config_of(a=tmp_path / "a", tokenizer="byte")
    loader = open_loader(data, batch_size=4, total=parse_duration("1 epoch"))
    with loader.iterate() as batches:
        read = [b.targets[b.segment_ids > 0] for b in batches]
    rows = -(-(len(tokens) - 1) // 16)
    assert loader.timeline.total_steps == -(-rows // 4)
    assert sum(map(len, read)) >= len(tokens) - 1
    split = open_sources(data)["a"].tokens
    in_order = [b.targets[b.segment_ids > 0] for b in eval_batches(split, 16, 4)]
    np.testing.assert_array_equal(np.concatenate(in_order), tokens[1:])


def test_a_whole_document_plan_lies_in_the_store(tmp_path) -> None:
    store_at(tmp_path / "a")
    data = config_of(a=tmp_path / "a").model_copy(update={"packing": "whole"})
    loader = open_loader(data, batch_size=4, total=parse_duration("2 steps"))
    assert (loader.batch(0).loss_weights == (loader.batch(0).segment_ids > 0)).all()
    assert len(list((tmp_path / "a" / "plans").iterdir())) == 1


def test_the_data_hash_follows_the_stores(tmp_path) -> None:
    store_at(tmp_path / "a")
    store_at(tmp_path / "b", seed=1)
    total = parse_duration("2 steps")
    hashes = {
        open_loader(config_of(a=tmp_path / name), batch_size=1, total=total).hash
        for name in ("a", "b", "a")
    }
    assert len(hashes) == 2


def test_stores_of_two_tokenizers_are_not_mixed(tmp_path) -> None:
    for name in ("a", "b"):
        store_at(tmp_path / name)
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    manifest["tokenizer"]["hash"] = "f00d" * 16
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"'a' and 'b'.*different tokenizers.*f00df00df00d…"):
        open_sources(config_of(a=tmp_path / "a", b=tmp_path / "b"))
    with pytest.raises(DataError, match=r"'b'.*f00df00df00d….*data.tokenizer is byte"):
        open_sources(config_of(b=tmp_path / "b", tokenizer="byte"))


def test_an_empty_mixture_and_a_missing_store_are_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"data\.mixture is empty"):
        open_sources(config_of())
    with pytest.raises(DataError, match="does not exist"):
        open_sources(config_of(a=tmp_path / "nowhere"))
