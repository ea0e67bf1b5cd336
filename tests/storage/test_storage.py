"""Paths, small files and typed errors are the same on a disk, in memory and in a bucket."""

import builtins
import errno
import os
import subprocess
import sys

import pytest

from maxlm import storage
from maxlm.errors import StorageError
from tests.gcs_emulator import bucket  # noqa: F401


@pytest.fixture(params=["local", "file", "memory", "gs"])
def root(request, tmp_path):
    if request.param == "gs":
        return f"{request.getfixturevalue('bucket')}/{request.node.callspec.id}-{tmp_path.name}"
    prefix = {"local": "", "file": "file://", "memory": "memory:/"}[request.param]
    return f"{prefix}{tmp_path}/root"


def test_files_are_written_read_listed_measured_and_removed(root):
    path = storage.join(root, "a", "b.txt")
    assert not storage.exists(path) and storage.list_names(root) == []
    storage.write_text(path, "grüße\n")
    storage.write_bytes(storage.join(root, "c"), b"\x00\xff")
    assert storage.exists(path) and storage.exists(storage.join(root, "a"))
    assert storage.read_text(path) == "grüße\n" and storage.size(path) == 8
    assert storage.list_names(root) == ["a", "c"]
    assert storage.list_names(root + "/") == ["a", "c"]
    assert storage.list_names(storage.join(root, "a")) == ["b.txt"]
    storage.write_text(path, "new")
    assert storage.read_text(path) == "new"
    storage.remove_file(path)
    storage.remove_file(path)
    assert not storage.exists(path)
    storage.write_text(path, "again")
    storage.remove_tree(root)
    storage.remove_tree(root)
    assert not storage.exists(path) and storage.list_names(root) == []


def test_streams_can_be_opened(root):
    storage.make_folder(root)
    path = storage.join(root, "stream")
    with storage.open_file(path, "wb") as file:
        file.write(b"one\ntwo\n")
    with storage.open_file(path) as file:
        assert list(file) == [b"one\n", b"two\n"]


def test_a_missing_file_is_a_storage_error_with_its_path(root):
    path = storage.join(root, "missing")
    for ask in (storage.read_bytes, storage.read_text, storage.size, storage.open_file):
        with pytest.raises(StorageError, match="missing: no such file"):
            ask(path)


def test_text_that_is_not_utf8_names_the_byte(root):
    path = storage.join(root, "text")
    storage.write_bytes(path, b"abc\xff")
    with pytest.raises(StorageError, match=r"text: not UTF-8 text \(byte 3\)"):
        storage.read_text(path)


def test_remote_paths_are_told_from_local_ones():
    assert storage.is_remote("gs://b/x") and storage.is_remote("memory://x")
    assert not storage.is_remote("/x") and not storage.is_remote("file:///x")
    assert storage.join("gs://b", "x", "y") == "gs://b/x/y"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    storage.write_text(path, "old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="file: the disk is full; free some space"):
        storage.write_text(path, "new")
    assert storage.read_text(path) == "old" and os.listdir(tmp_path) == ["file"]


def test_wrong_kinds_of_path_are_storage_errors(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="is a folder, not a file"):
        storage.read_bytes(tmp_path)
    with pytest.raises(StorageError, match="is a file, not a folder"):
        storage.write_bytes(tmp_path / "file" / "below", b"")
    with pytest.raises(StorageError, match="no storage of kind 'gz://'"):
        storage.read_bytes("gz://bucket/x")


def test_permission_denied_is_a_storage_error(tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(builtins, "open", forbidden)
    with pytest.raises(StorageError, match="permission denied"):
        storage.read_bytes(tmp_path / "x")


def test_an_absent_client_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(StorageError, match=r"s3:// needs a package.*maxlm\[s3\]"):
        storage.read_bytes("s3://bucket/x")


def test_local_paths_do_not_import_fsspec(tmp_path):
    code = (
        "import sys; from maxlm import storage; "
        f"storage.write_text({str(tmp_path / 'x')!r}, 'y'); "
        f"storage.list_names({str(tmp_path)!r}); assert 'fsspec' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
