"""Paths and small files on local disk, gs:// and s3://, through fsspec.

Everything that maxlm writes besides arrays goes through here: writes are atomic (a reader sees the
old file or the new one, never half of one), and errors are typed. Local paths never import fsspec.
"""

from __future__ import annotations

import errno
import os
import posixpath
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from maxlm.errors import StorageError


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether `path` names an object store (`gs://`, `s3://`, `memory://`)."""
    return "://" in os.fspath(path) and not os.fspath(path).startswith("file://")


def join(path: str | os.PathLike[str], *parts: str) -> str:
    """Join path parts, for local and remote paths alike."""
    base = os.fspath(path)
    return posixpath.join(base, *parts) if is_remote(base) else os.path.join(base, *parts)


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether a file or folder is there."""
    if is_remote(path):
        return bool(_remote(path).exists(os.fspath(path)))
    return os.path.exists(path)


def size(path: str | os.PathLike[str]) -> int:
    """Bytes of a file. Raises StorageError when it is missing."""
    with _typed(path):
        return int(_remote(path).size(os.fspath(path))) if is_remote(path) else os.path.getsize(path)


def list_names(path: str | os.PathLike[str]) -> list[str]:
    """Sorted names inside a folder; empty when it does not exist."""
    if is_remote(path):
        fs = _remote(path)
        fs.invalidate_cache()
        if not fs.exists(os.fspath(path)):
            return []
        names = {e.rstrip("/").rsplit("/", 1)[-1] for e in fs.ls(os.fspath(path), detail=False)}
        return sorted(n for n in names if n)
    return sorted(os.listdir(path)) if os.path.isdir(path) else []


def make_folder(path: str | os.PathLike[str]) -> None:
    """Create a folder and its parents (object stores need none)."""
    if not is_remote(path):
        with _typed(path):
            os.makedirs(path, exist_ok=True)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Whole content of a small file. Raises StorageError."""
    with open_file(path, "rb") as file:
        return file.read()


def read_text(path: str | os.PathLike[str]) -> str:
    """Whole content of a small UTF-8 file. Raises StorageError."""
    return read_bytes(path).decode("utf-8")


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a small file atomically, creating its folder. Raises StorageError."""
    with _typed(path):
        if is_remote(path):
            _remote(path).pipe_file(os.fspath(path), content)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Write a small UTF-8 file atomically, creating its folder. Raises StorageError."""
    write_bytes(path, content.encode("utf-8"))


def remove_tree(path: str | os.PathLike[str]) -> None:
    """Remove a folder and everything in it, if it is there."""
    with _typed(path):
        if is_remote(path):
            if exists(path):
                _remote(path).rm(os.fspath(path), recursive=True)
        elif os.path.isdir(path):
            shutil.rmtree(path)


def open_file(path: str | os.PathLike[str], mode: str = "rb") -> IO[Any]:
    """Open a file, local or remote. Raises StorageError when it cannot be opened."""
    with _typed(path):
        if is_remote(path):
            return _remote(path).open(os.fspath(path), mode)
        return open(path, mode, encoding=None if "b" in mode else "utf-8")


def _remote(path: str | os.PathLike[str]) -> Any:
    import fsspec

    try:
        return fsspec.core.url_to_fs(os.fspath(path))[0]
    except (ImportError, ValueError) as error:
        raise StorageError(f"{path}: cannot open this kind of storage: {error}") from error


@contextmanager
def _typed(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"{path}: no such file or folder") from error
    except PermissionError as error:
        raise StorageError(f"{path}: permission denied") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"{path}: the disk is full; free some space and run again") from error
        raise StorageError(f"{path}: {error.strerror or error}") from error
