"""One process at a time on a folder, a run's or an unfinished store's.

In comes the path of a lock file; while the `with` block runs, no other process gets past the same
path. The lock is the operating system's: it ends with the process that holds it, however that ends,
and a network file system that has locks keeps other machines out too. Object stores have none, and
a lease of our own would keep a restart after a kill waiting: there it is up to the user.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator

from maxlm import storage
from maxlm.errors import StorageError


@contextlib.contextmanager
def only_process(lock_file: str, busy: str) -> Iterator[None]:
    """Hold the lock of `lock_file`; both the file and a folder made for it are gone afterwards.

    Args:
        lock_file: where the lock lies; its folder is created.
        busy: what to say when another process has it, up to who that is.

    Raises:
        StorageError: another process holds it (says which, and where), or the folder cannot be
            written.
    """
    if storage.is_remote(lock_file):
        yield
        return
    path = lock_file.removeprefix("file://")
    descriptor = _open_locked(path, busy)
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = f"pid {os.getpid()} on {socket.gethostname()} since {since}"
        with contextlib.suppress(OSError):  # a full disk: held, but namelessly
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, holder.encode(), 0)
        yield
    finally:
        # Removed while it is still held, or another's new lock might be the one that goes.
        with contextlib.suppress(OSError):
            os.unlink(path)
        with contextlib.suppress(OSError):  # not empty: it is in use
            os.rmdir(os.path.dirname(path) or ".")
        os.close(descriptor)


def _open_locked(path: str, busy: str) -> int:
    """A descriptor that holds the lock of the file that is at `path` now."""
    while True:
        storage.make_folder(os.path.dirname(path) or ".")
        with storage.typed_errors(path):
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            except FileNotFoundError:  # its holder has just ended and removed the folder
                continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace") or "not known which"
            os.close(descriptor)
            raise StorageError(f"{busy} ({holder}): wait for it to end, or end it") from error
        except OSError:
            return descriptor  # a file system without locks: up to the user
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # its holder has just ended and removed the file that was opened
