import json

import numpy as np
import pytest

from maxlm.data.shards import CRC_BLOCK_BYTES, ShardWriter, shard_sha256
from maxlm.data.store import TokenStore
from maxlm.data.tokenizers import load_tokenizer
from maxlm.errors import DataError, StorageError


def write_store(folder, shards, dtype="uint16"):
    """A store of one split `train` from lists of documents, one list a shard."""
    tokenizer = load_tokenizer("byte")
    tokenizer.save(str(folder / "tokenizer"))
    records = []
    for number, documents in enumerate(shards):
        writer = ShardWriter(str(folder / "train"), f"{number:05d}", dtype)
        for document in documents:
            writer.add(np.asarray(document), len(document))
        records.append(writer.close().to_dict())
    manifest = {
        "format_version": 1,
        "dtype": dtype,
        "tokenizer": {"kind": "byte", "hash": tokenizer.hash, "vocab_size": 257},
        "splits": {"train": {"shards": records}},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return TokenStore(str(folder))


def random_shards(seed=0, sizes=((50, 7, 300), (1,), (4000, 90_000))):
    rng = np.random.default_rng(seed)
    return [[rng.integers(0, 257, n) for n in documents] for documents in sizes]


def test_a_split_reads_back_what_was_written_over_all_shards(tmp_path):
    shards = random_shards()
    split = write_store(tmp_path, shards).split("train")
    documents = [d for shard in shards for d in shard]
    whole = np.concatenate(documents)
    assert (split.num_tokens, split.num_documents) == (len(whole), len(documents))
    assert split.num_bytes == len(whole)
    np.testing.assert_array_equal(split.read(0, len(whole)), whole)
    np.testing.assert_array_equal(split.read(350, 365), whole[350:365])
    lengths = np.diff(split.document_starts)
    np.testing.assert_array_equal(lengths, [len(d) for d in documents])


@pytest.mark.parametrize("length", [1, 16, 400, 50_000])
def test_gather_equals_slices_also_across_shards_and_past_the_end(tmp_path, length):
    split = write_store(tmp_path, random_shards()).split("train")
    whole = split.read(0, split.num_tokens)
    starts = np.array([0, 340, 357, 358, 359, split.num_tokens - 3, split.num_tokens - 1])
    padded = np.concatenate([whole, np.zeros(length, np.int32)])
    expected = np.stack([padded[s : s + length] for s in starts])
    rows = split.gather(starts, length)
    np.testing.assert_array_equal(rows, expected)
    assert rows.dtype == np.int32


def test_a_flipped_byte_is_found_where_its_block_is_first_touched(tmp_path):
    store = write_store(tmp_path, random_shards())
    path = tmp_path / "train" / "00002.tokens"
    content = bytearray(path.read_bytes())
    content[CRC_BLOCK_BYTES + 100] ^= 4
    path.write_bytes(content)
    split = store.split("train")
    split.gather(np.array([360]), 100)  # another block of the same shard is good
    message = rf"00002.tokens: bytes {CRC_BLOCK_BYTES} to {2 * CRC_BLOCK_BYTES - 1} are damaged"
    with pytest.raises(DataError, match=message):
        split.gather(np.array([358 + CRC_BLOCK_BYTES // 2 + 10]), 100)
    with pytest.raises(DataError, match=message):
        store.split("train").verify()


def test_a_cut_or_missing_shard_is_refused_at_opening(tmp_path):
    store = write_store(tmp_path, random_shards())
    path = tmp_path / "train" / "00000.tokens"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"00000.tokens: has 712 bytes where .* says 714"):
        store.split("train")
    path.unlink()
    with pytest.raises(DataError, match=r"00000.tokens: this file .* is missing"):
        store.split("train")


def test_the_manifest_hash_of_a_shard_is_that_of_its_files(tmp_path):
    store = write_store(tmp_path, random_shards())
    for shard in store.manifest["splits"]["train"]["shards"]:
        assert shard_sha256(str(tmp_path / "train" / shard["name"])) == shard["sha256"]


def test_no_store_no_split_and_newer_versions_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"does not exist .* `maxlm data tokenize`"):
        TokenStore(str(tmp_path / "none"))
    store = write_store(tmp_path / "one", [[[1, 2]]])
    with pytest.raises(DataError, match=r"no split 'trian' \(did you mean 'train'\?\)"):
        store.split("trian")
    manifest = store.manifest | {"format_version": 2}
    (tmp_path / "one" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="version 2 is newer"):
        TokenStore(str(tmp_path / "one"))


def test_a_token_that_does_not_fit_the_dtype_is_refused(tmp_path):
    writer = ShardWriter(str(tmp_path), "00000", "uint16")
    with pytest.raises(DataError, match="token id 70000 does not fit uint16"):
        writer.add(np.array([1, 70_000]), 2)
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_finished_shards_good(tmp_path, monkeypatch):
    store = write_store(tmp_path, [[[1, 2, 3]]])
    writer = ShardWriter(str(tmp_path / "train"), "00001", "uint16")

    class Full:
        def write(self, content):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    writer._file.close()
    writer._file = Full()
    with pytest.raises(StorageError, match="disk is full"):
        writer.add(np.array([1]), 1)
    writer.abandon()
    np.testing.assert_array_equal(store.split("train").read(0, 3), [1, 2, 3])


def test_a_store_on_an_object_store_reads_the_same(tmp_path):
    import fsspec

    write_store(tmp_path, random_shards())
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path) + "/", "/bucket/store/", recursive=True)
    here, there = TokenStore(str(tmp_path)), TokenStore("memory://bucket/store")
    assert here.hash == there.hash
    starts = np.array([3, 340, 20_000])
    local, remote = here.split("train"), there.split("train")
    np.testing.assert_array_equal(local.gather(starts, 999), remote.gather(starts, 999))
    assert there.tokenizer().hash == here.tokenizer().hash
