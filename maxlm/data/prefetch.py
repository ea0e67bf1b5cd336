"""Batches read ahead by Grain's threads, an element being a whole batch.

In come a function from step to batch and the steps; out goes an iterator that holds a bounded
number of batches, hands on errors from its threads at the step they belong to, and stops its
threads when closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

from maxlm.batch import Batch


class BatchIterator(Iterator[Batch]):
    """Batches of consecutive steps, in order, whatever the number of threads."""

    def __init__(self, make: Callable[[int], Batch], steps: range, *, workers: int, prefetch: int):
        """Start reading ahead: `prefetch` batches by `workers` threads; 0 makes them on demand."""
        self._closed = False
        self._threaded: Any = None
        if workers == 0 or not len(steps):
            self._batches: Iterator[Batch] = (make(step) for step in steps)
            return
        import grain

        dataset = grain.MapDataset.range(steps.start, steps.stop).map(lambda step: make(int(step)))
        options = grain.ReadOptions(
            num_threads=min(workers, prefetch), prefetch_buffer_size=prefetch
        )
        self._threaded = iter(dataset.to_iter_dataset(options))
        self._threaded.start_prefetch()  # the first batches are made while the step compiles
        self._batches = self._threaded

    def __next__(self) -> Batch:
        """The next step's batch; StopIteration at the end and after `close`."""
        if self._closed:
            raise StopIteration
        try:
            return next(self._batches)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop the threads; batches not yet handed out are dropped."""
        if not self._closed:
            self._closed = True
            if self._threaded is not None:
                self._threaded.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
