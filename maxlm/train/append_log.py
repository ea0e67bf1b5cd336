"""A file that only grows, on local disk or an object store, and survives a kill.

In come whole pieces of bytes (a line, an event); what was appended stays readable whatever happens
next. On local disk every append reaches the operating system before it returns, so a SIGKILL loses
nothing. An object cannot be appended to: there the content is kept in memory and the whole object
is rewritten at intervals by a background thread, so a kill loses the last interval.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

from maxlm import storage
from maxlm.errors import MaxLMError, StorageError

UPLOAD_SECONDS = 30.0


class AppendLog:
    """Appends to `path`, keeping what is already there.

    Args:
        path: local file or object (`gs://…`). Its folder is created.
        upload_seconds: for an object, the shortest time between two rewrites.
    """

    def __init__(self, path: str, upload_seconds: float = UPLOAD_SECONDS):
        self.path = path
        self._remote = storage.is_remote(path)
        if self._remote:
            self._content = bytearray(storage.read_bytes(path) if storage.exists(path) else b"")
            self._upload_seconds = upload_seconds
            self._uploaded_at = time.monotonic()
            self._uploaded_size = len(self._content)
            self._upload: Future[None] | None = None
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="append-log")
            self._lock = threading.Lock()
        else:
            storage.make_folder(os.path.dirname(path) or ".")
            try:
                # Unbuffered: a buffer would keep a piece that failed and write it again later.
                self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
            except OSError as error:
                raise self._failure("open", error) from error

    def cut_torn_line(self) -> None:
        """Drop what follows the last line break: a line that a kill tore."""
        if self._remote:
            del self._content[self._content.rfind(b"\n") + 1 :]
            return
        end = self._file.seek(0, os.SEEK_END)
        stop = end
        while stop > 0:  # backwards by blocks: the file of a long run is large
            start = max(0, stop - 65536)
            self._file.seek(start)
            newline = (self._file.read(stop - start) or b"").rfind(b"\n")
            if newline >= 0:
                stop = start + newline + 1
                break
            stop = start
        if stop != end:
            self._file.truncate(stop)

    def append(self, piece: bytes) -> None:
        """Append all of `piece` or, on an error, none of it. Raises StorageError."""
        if self._remote:
            with self._lock:
                self._content += piece
            self._upload_when_due()
            return
        end = self._file.seek(0, os.SEEK_END)
        left = memoryview(piece)
        try:
            while left:  # a disk that fills up takes a part, and refuses the rest
                left = left[self._file.write(left) or 0 :]
        except OSError as error:
            os.ftruncate(self._file.fileno(), end)
            raise self._failure("append", error) from error

    def flush(self) -> None:
        """Return when everything appended so far is stored for good. Raises StorageError."""
        if not self._remote:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise self._failure("sync", error) from error
            return
        if self._upload is not None:
            self._upload.exception()  # a failed upload in the background is made good here
        if len(self._content) != self._uploaded_size:
            self._rewrite()

    def close(self) -> None:
        """Flush and let go of the file. A second close does nothing."""
        if self._remote:
            self.flush()
            self._thread.shutdown()
        elif not self._file.closed:
            self.flush()
            self._file.close()

    def _failure(self, deed: str, error: OSError) -> StorageError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "the disk is full; free some space and run again" if full else error.strerror
        return StorageError(f"{self.path}: cannot {deed}: {advice}")

    def _upload_when_due(self) -> None:
        # A growing object takes longer to rewrite: rewrite it less often.
        wait = self._upload_seconds * max(1.0, len(self._content) / 30e6)
        busy = self._upload is not None and not self._upload.done()
        if busy or time.monotonic() - self._uploaded_at < wait:
            return
        if self._upload is not None and self._upload.exception() is not None:
            logging.getLogger("maxlm").warning("%s; trying again", self._upload.exception())
        self._uploaded_at = time.monotonic()
        self._upload = self._thread.submit(self._rewrite)

    def _rewrite(self) -> None:
        with self._lock:
            content = bytes(self._content)
        try:
            storage.write_bytes(self.path, content)
        except MaxLMError:
            raise
        except Exception as error:  # the object stores' clients each have their own errors
            raise StorageError(f"{self.path}: cannot write: {error}") from error
        self._uploaded_size = len(content)
