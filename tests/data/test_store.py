import json
import time

import numpy as np
import pytest

from maxlm import storage
from maxlm.data.remote_blocks import RemoteBlocks
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


def test_the_hash_names_the_content_and_not_who_wrote_it(tmp_path):
    shards = random_shards()
    store = write_store(tmp_path / "one", shards)
    other = write_store(tmp_path / "two", shards)
    manifest = other.manifest | {"maxlm_version": "99", "sources": [{"name": "elsewhere"}]}
    (tmp_path / "two" / "manifest.json").write_text(json.dumps(manifest))
    assert TokenStore(other.path).hash == store.hash
    shards[1][0][0] = (shards[1][0][0] + 1) % 257
    assert write_store(tmp_path / "three", shards).hash != store.hash


@pytest.fixture
def remote_split(tmp_path):
    """A split of 12 shards in a bucket, and all its tokens."""
    import fsspec

    store = write_store(tmp_path, random_shards(sizes=[(200_000,)] * 12))
    fsspec.filesystem("memory").put(f"{tmp_path}/", "/bucket/many/", recursive=True)
    local = store.split("train")
    return TokenStore("memory://bucket/many").split("train"), local.read(0, local.num_tokens)


@pytest.fixture
def requests(monkeypatch):
    """What is read of the bucket, every request a little slow; and how many were under way."""
    made, under_way, most = [], [], [0]
    read_range = storage.read_range

    def slow(path, start, stop):
        made.append((path, start))
        under_way.append(path)
        most[0] = max(most[0], len(under_way))
        time.sleep(0.1)  # threads of a busy machine start late
        under_way.pop()
        return read_range(path, start, stop)

    monkeypatch.setattr(storage, "read_range", slow)
    return made, most


def test_a_batch_from_many_remote_shards_is_fetched_side_by_side_and_once(
    remote_split, requests, monkeypatch
):
    split, whole = remote_split
    made, most = requests
    blocks = RemoteBlocks(max_blocks=8, threads=16)
    monkeypatch.setattr("maxlm.data.shards.REMOTE", blocks)
    starts = np.arange(12) * 200_000 + 5
    expected = np.stack([whole[s : s + 99] for s in starts])
    np.testing.assert_array_equal(split.gather(starts, 99), expected)
    assert most[0] > 6 and len(blocks) == 8
    made.clear()
    np.testing.assert_array_equal(split.gather(starts[-4:], 99), expected[-4:])
    assert not made  # kept
    np.testing.assert_array_equal(split.gather(starts[:1], 99), expected[:1])
    assert len(made) == 1 and len(blocks) == 8


def test_a_remote_read_that_failed_is_tried_again(remote_split, monkeypatch):
    split, whole = remote_split
    monkeypatch.setattr("maxlm.data.shards.REMOTE", RemoteBlocks(max_blocks=8, threads=2))
    read_range = storage.read_range

    def fail(path, start, stop):
        raise StorageError("no network")

    monkeypatch.setattr(storage, "read_range", fail)
    with pytest.raises(StorageError, match="no network"):
        split.read(10, 20)
    monkeypatch.setattr(storage, "read_range", read_range)
    np.testing.assert_array_equal(split.read(10, 20), whole[10:20])
