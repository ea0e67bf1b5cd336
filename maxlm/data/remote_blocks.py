"""Blocks of remote files: fetched side by side, kept up to a total size, shared by all readers.

In go keys and a function that fetches one block; out come the blocks. A request to an object store
takes tens of milliseconds whatever it brings, so a batch asks for all its blocks at once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

Fetch = Callable[[], np.ndarray]


class RemoteBlocks:
    """A cache of blocks by key, filled by threads. Safe to use from several threads."""

    def __init__(self, max_blocks: int, threads: int):
        """Keep at most `max_blocks`, the least recently used leaves first."""
        self._max_blocks = max_blocks
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._blocks: OrderedDict[Hashable, Future[np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def request(self, key: Hashable, fetch: Fetch) -> Future[np.ndarray]:
        """The block's future; `fetch` is called where nobody has asked for it before."""
        with self._lock:
            future = self._blocks.get(key)
            # A failed request is made again.
            if future is None or (future.done() and future.exception() is not None):
                future = self._blocks[key] = self._executor().submit(fetch)
            self._blocks.move_to_end(key)
            while len(self._blocks) > self._max_blocks:
                self._blocks.popitem(last=False)
            return future

    def map(self, call: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """`call` of every item, side by side, in order."""
        with self._lock:
            executor = self._executor()
        return list(executor.map(call, items))

    def __len__(self) -> int:
        return len(self._blocks)

    def _executor(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="remote-blocks")
        return self._pool
