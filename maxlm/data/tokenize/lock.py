"""One writer of a store at a time, among the processes of one machine.

The lock is the operating system's: it ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from maxlm import storage
from maxlm.errors import StorageError


@contextmanager
def only_writer(output: str) -> Iterator[None]:
    """Hold the right to write `output`; object stores have no locks, there it is up to the user.

    Raises:
        StorageError: another process holds it.
    """
    if storage.is_remote(output):
        yield
        return
    folder = os.path.join(output.removeprefix("file://"), "unfinished")
    storage.make_folder(folder)
    with storage.typed_errors(folder):
        descriptor = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise StorageError(
            f"{output}: another process is writing this store; wait for it, or end it"
        ) from error
    except OSError:
        pass  # a file system without locks: up to the user, as with object stores
    try:
        yield
    finally:
        os.close(descriptor)
