"""Paths and small files on local disk, gs:// and s3://, through fsspec.

In go paths as people write them (`runs/x`, `/data/x`, `file:///data/x`, `gs://bucket/x`); out come
bytes, names and typed errors. Everything that maxlm writes besides arrays goes through here: writes
are atomic (a reader sees the old file or the new one, never half of one). Local paths never import
fsspec.
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from maxlm.errors import MaxLMError, MissingError, StorageError, UnreachableError

Result = TypeVar("Result")


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether `path` names an object store (`gs://`, `s3://`, `memory://`)."""
    return "://" in os.fspath(path) and not os.fspath(path).startswith("file://")


def join(path: str | os.PathLike[str], *parts: str) -> str:
    """Join path parts, for local and remote paths alike."""
    base = os.fspath(path)
    return posixpath.join(base, *parts) if is_remote(base) else os.path.join(base, *parts)


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether a file or folder is there."""
    if not is_remote(path):
        return os.path.exists(_local(path))
    with typed_errors(path):
        fs = _remote(path)
        fs.invalidate_cache()  # another process may have written it since it was last asked for
        return bool(fs.exists(os.fspath(path)))


def size(path: str | os.PathLike[str]) -> int:
    """Bytes of a file. Raises StorageError when it is missing."""
    with typed_errors(path):
        if is_remote(path):
            return int(_remote(path).size(os.fspath(path)))
        return os.path.getsize(_local(path))


def list_names(path: str | os.PathLike[str]) -> list[str]:
    """Sorted names inside a folder; empty when it does not exist."""
    with typed_errors(path):
        if not is_remote(path):
            return sorted(os.listdir(_local(path))) if os.path.isdir(_local(path)) else []
        fs = _remote(path)
        fs.invalidate_cache()
        folder = os.fspath(path).rstrip("/")
        if not fs.exists(folder):
            return []
        # Some stores list a folder's own marker among its content.
        own = fs._strip_protocol(folder).rstrip("/")
        entries = [entry.rstrip("/") for entry in fs.ls(folder, detail=False)]
        return sorted({e.rsplit("/", 1)[-1] for e in entries if e.strip("/") != own.strip("/")})


def make_folder(path: str | os.PathLike[str]) -> None:
    """Create a folder and its parents (object stores need none)."""
    if not is_remote(path):
        with typed_errors(path):
            os.makedirs(_local(path), exist_ok=True)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Whole content of a small file. Raises StorageError."""
    with typed_errors(path), open_file(path, "rb") as file:
        return bytes(file.read())


def read_range(path: str | os.PathLike[str], start: int, stop: int) -> bytes:
    """Bytes `[start, stop)` of a file. Raises StorageError."""
    with typed_errors(path):
        if is_remote(path):
            return _remote(path).cat_file(os.fspath(path), start, stop)
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(stop - start)


def read_text(path: str | os.PathLike[str]) -> str:
    """Whole content of a small UTF-8 file. Raises StorageError, also when it is not UTF-8."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise StorageError(f"{path}: not UTF-8 text (byte {error.start})") from error


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a small file atomically, creating its folder. Raises StorageError."""
    with typed_errors(path):
        if is_remote(path):
            # An object appears whole or not at all.
            _remote(path).pipe_file(os.fspath(path), content)
            return
        target = Path(_local(path))
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


def remove_file(path: str | os.PathLike[str]) -> None:
    """Remove a file, if it is there."""
    with typed_errors(path):
        if not is_remote(path):
            Path(_local(path)).unlink(missing_ok=True)
        elif exists(path):
            _remote(path).rm_file(os.fspath(path))


def remove_tree(path: str | os.PathLike[str]) -> None:
    """Remove a folder and everything in it, if it is there."""
    with typed_errors(path):
        if not is_remote(path):
            if os.path.isdir(_local(path)):
                shutil.rmtree(_local(path))
        elif exists(path):
            _remote(path).rm(os.fspath(path), recursive=True)


def open_file(path: str | os.PathLike[str], mode: str = "rb") -> IO[Any]:
    """Open a file, local or remote. Raises StorageError when it cannot be opened."""
    with typed_errors(path):
        if is_remote(path):
            return _remote(path).open(os.fspath(path), mode)
        return open(_local(path), mode, encoding=None if "b" in mode else "utf-8")


def _local(path: str | os.PathLike[str]) -> str:
    return os.fspath(path).removeprefix("file://")


def _remote(path: str | os.PathLike[str]) -> Any:
    import fsspec

    kind = os.fspath(path).split("://", 1)[0]
    try:
        return fsspec.core.url_to_fs(os.fspath(path))[0]
    except ImportError as error:
        extra = {"gs": "gcs", "gcs": "gcs", "s3": "s3"}.get(kind)
        advice = f"pip install 'maxlm[{extra}]'" if extra else str(error)
        raise StorageError(f"{path}: {kind}:// needs a package that is absent: {advice}") from error
    except ValueError as error:
        raise StorageError(
            f"{path}: no storage of kind '{kind}://'; there are local paths, gs:// and s3://"
        ) from error


@contextmanager
def typed_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn OSErrors inside the block into StorageErrors that name `path`."""
    try:
        yield
    except MaxLMError:
        raise
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no such file or folder") from error
    except PermissionError as error:
        raise StorageError(f"{path}: permission denied") from error
    except IsADirectoryError as error:
        raise StorageError(f"{path}: is a folder, not a file") from error
    except (NotADirectoryError, FileExistsError) as error:
        raise StorageError(f"{path}: a part of this path is a file, not a folder") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"{path}: the disk is full; free some space and run again"
            ) from error
        kind = UnreachableError if is_transient(error) else StorageError
        raise kind(f"{path}: {error.strerror or error}") from error
    except Exception as error:
        # Clients of object stores raise types of their own.
        if not is_remote(path):
            raise
        kind = UnreachableError if is_transient(error) else StorageError
        raise kind(f"{path}: {type(error).__name__}: {error}") from error


# What a disk, a mounted share or a network says when it is in trouble, not the file.
_TRANSIENT_ERRNOS = frozenset(
    {
        errno.EIO,
        errno.EAGAIN,
        errno.EINTR,
        errno.EBUSY,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ECONNRESET,
        errno.ECONNREFUSED,
        errno.ECONNABORTED,
        errno.EPIPE,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EREMOTEIO,
        errno.EMFILE,
        errno.ENFILE,
    }
)
# How gRPC, TensorStore, gcsfs, aiohttp and HTTP name the same in a message.
_TRANSIENT_TEXT = re.compile(
    r"UNAVAILABLE|DEADLINE_EXCEEDED|Too Many Requests|Service Unavailable|Bad Gateway"
    r"|Gateway Time-?out|Internal Server Error|Input/output error|Stale file handle"
    r"|timed? ?out|[Cc]onnection (?:reset|refused|aborted|closed)|Cannot connect|[Nn]ame resolution"
    r"|Server ?[Dd]isconnected|\b(?:HTTP|[Ss]tatus|[Cc]ode)[^\w]{0,3}(?:code[^\w]{0,3})?(?:429|50[0234])\b"
)


def is_transient(error: BaseException) -> bool:
    """Whether a failure says nothing about the file: the same call may succeed a moment later."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UnreachableError | TimeoutError | ConnectionError):
            return True
        if isinstance(seen, OSError) and seen.errno in _TRANSIENT_ERRNOS:
            return True
        status = getattr(seen, "status", getattr(seen, "code", None))
        if isinstance(status, int) and status in (408, 429, 500, 502, 503, 504):
            return True
        if not isinstance(seen, FileNotFoundError) and _TRANSIENT_TEXT.search(str(seen)):
            return True
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return False


# Enough for a lost connection; longer trouble is the launcher's to wait out.
_RETRY_SECONDS = (0.2, 1.0, 3.0)


def retried(call: Callable[[], Result]) -> Result:
    """The result of a call that reads; repeated a few times while its failure is transient."""
    for seconds in _RETRY_SECONDS:
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
        time.sleep(seconds)
    return call()
