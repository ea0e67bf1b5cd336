"""Worker processes: tasks out, results and counts back, over one pipe each.

A worker is a fresh process (`spawn`) that imports the tokenizer and the readers, no accelerator
library. It dies with the process that started it, so that a killed run leaves nobody who writes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection, wait
from typing import Any

from maxlm import errors
from maxlm.data.sources.source_file import SourceFile
from maxlm.data.tokenize.plan import Unit
from maxlm.data.tokenize.unit import Counts, Job, UnitResult, UnitWorker, hash_file
from maxlm.end_with_parent import end_with_parent
from maxlm.errors import DataError, MaxLMError

Task = tuple[Any, Unit | SourceFile]  # a label of the caller's, and what to do
Done = tuple[Any, Unit | SourceFile, UnitResult | str]


def run_here(
    job: Job, next_task: Callable[[], Task | None], report: Callable[[Counts], None]
) -> Generator[Done, None, None]:
    """Do tasks in this process, one after another."""
    worker = UnitWorker(job, report)
    while (task := next_task()) is not None:
        yield (*task, _do(worker, task[1]))


def run_workers(
    job: Job,
    next_task: Callable[[], Task | None],
    report: Callable[[Counts], None],
    workers: int,
) -> Generator[Done, None, None]:
    """Do tasks in so many processes; results come as they are ready.

    Args:
        job: what tasks have in common.
        next_task: asked whenever a worker is free; None: nothing now.
        report: called with counts of progress.
        workers: processes.

    Raises:
        MaxLMError: the first error of a worker; the others are stopped.
    """
    context = multiprocessing.get_context("spawn")
    processes: dict[Connection, Any] = {}
    busy: dict[Connection, Task] = {}
    finished = False
    try:
        for _ in range(workers):
            mine, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(job, theirs, os.getpid()), name="maxlm-tokenize", daemon=True
            )
            process.start()
            theirs.close()
            processes[mine] = process
        while _hand_out(processes, busy, next_task):
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                message = _receive(connection, processes[connection], busy[connection])
                if isinstance(message, Counts):
                    report(message)
                elif isinstance(message, Exception):
                    raise message
                else:
                    yield (*busy.pop(connection), message)
        finished = True
    finally:
        for connection, process in processes.items():
            connection.close()  # a waiting worker ends by itself
            if not finished:
                process.kill()
        for process in processes.values():
            process.join()


def _hand_out(
    processes: dict[Connection, Any],
    busy: dict[Connection, Task],
    next_task: Callable[[], Task | None],
) -> bool:
    """Give every free worker a task; whether any is at work."""
    for connection in processes:
        if connection in busy:
            continue
        task = next_task()
        if task is None:
            break
        busy[connection] = task
        connection.send(task[1])
    return bool(busy)


def _receive(connection: Connection, process: Any, task: Task) -> Any:
    try:
        return connection.recv()
    except (EOFError, ConnectionError):
        process.join()
        code = process.exitcode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        out_of_memory = (
            "; the machine may have run out of memory: use fewer --workers" if code == -9 else ""
        )
        what = task[1].name if isinstance(task[1], (Unit, SourceFile)) else task[1]
        raise DataError(
            f"a worker {how} while it did {what}{out_of_memory}; run the command again to continue"
        ) from None


def _serve(job: Job, connection: Connection, parent: int) -> None:
    """Main function of a worker."""
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent sees to it
    try:
        worker = UnitWorker(job, connection.send)
        while True:
            connection.send(_do(worker, connection.recv()))
    except (EOFError, ConnectionError):
        return
    except MaxLMError as error:
        connection.send(getattr(errors, type(error).__name__, MaxLMError)(str(error)))


def _do(worker: UnitWorker, task: Unit | SourceFile) -> UnitResult | str:
    return worker.do(task) if isinstance(task, Unit) else hash_file(task)
