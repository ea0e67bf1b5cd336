"""Tokenizing from a bucket into a bucket, with worker processes: the same store as on a disk."""

from pathlib import Path

import pytest
from test_tokenize import content_of, run, texts_in, write_corpus

from maxlm import storage
from maxlm.data.inspect import verify_store
from maxlm.data.tokenize.run import tokenize
from maxlm.data.tokenize.settings import StoreSettings
from maxlm.errors import DataError
from tests.gcs_emulator import bucket  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.slow
def test_from_a_bucket_into_a_bucket_an_error_keeps_what_was_finished(
    tmp_path: Path,
    bucket: str,  # noqa: F811
) -> None:
    texts = write_corpus(tmp_path / "corpus", 12)
    for name, content in content_of(tmp_path / "corpus").items():
        storage.write_bytes(f"{bucket}/corpus/{name}", content)
    storage.write_bytes(f"{bucket}/corpus/d.jsonl", b"nonsense\n")
    settings = StoreSettings(shard_bytes=1500)
    options = {"tokenizer": "byte", "output": f"{bucket}/store", "settings": settings}
    with pytest.raises(DataError, match=r"gs://bucket/corpus/d\.jsonl:1 "):
        tokenize([f"{bucket}/corpus"], workers=1, **options)
    kept = [n for n in storage.list_names(f"{bucket}/store/unfinished") if n.startswith("0")]
    assert kept
    storage.write_bytes(f"{bucket}/corpus/d.jsonl", b'{"text": "mended"}\n')
    store = tokenize([f"{bucket}/corpus"], workers=2, **options).store
    assert texts_in(store, "train") == [*texts, "mended"]
    assert verify_store(store) > 0
    (tmp_path / "corpus/d.jsonl").write_bytes(b'{"text": "mended"}\n')
    assert store.hash == run(tmp_path / "corpus", tmp_path / "store", shard_bytes=1500).store.hash
    assert tokenize([f"{bucket}/corpus"], **options).already_complete
