"""Joining the processes of a run, and ending them together.

In come flags and the environment; inside `joined()` jax sees the devices of all processes, and
`jax.process_count()` and `process_index()` say what this one is. A process that fails inside
tells the others, which end too; one that dies without a word is noticed by its `lifelines`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from maxlm.errors import MaxLMError, ParallelError
from maxlm.parallel.cluster import Membership, find_membership, from_tpu_metadata
from maxlm.parallel.lifelines import PROCESS_LOST, Lifelines
from maxlm.parallel.rendezvous import bind_address, meet

# How long to wait for all to join, and for the heartbeat of one that was there. Both belong to a
# start, as the coordinator's address does, and not to a run's config.
JOIN_SECONDS = ("MAXLM_JOIN_SECONDS", 300)
HEARTBEAT_SECONDS = ("MAXLM_HEARTBEAT_SECONDS", 30)

_SHUTDOWN_SECONDS = 60
_END_SECONDS = 3600  # the first process may be writing its last files
# A process that fails ends within this, whatever its threads do.
_LAST_WORDS_SECONDS = 5.0
_AFTER_ANOTHER_FAILED_SECONDS = 1.0
# The first process ends last, or the others would be aborted without a word: jax ends a process
# that loses the first.
_OTHERS_LEAVE_SECONDS = 4.0

# How the others say who failed; a launcher reads it too.
FAILED = "maxlm: process {process} failed: {text}"


# Of the run that this process has joined.
_lifelines: Lifelines | None = None


class ProcessLostError(ParallelError):
    """Another process of the run has died: nothing to mend here, run it again."""

    exit_code = PROCESS_LOST


@contextlib.contextmanager
def joined(
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Iterator[None]:
    """A block in which all processes of the run take part; one that is alone just enters it.

    Where an exception leaves the block, every process of the run ends, within some
    seconds: the others' collectives cannot complete without it.

    Args:
        coordinator, num_processes, process_id: as in `find_membership`.

    Raises:
        ParallelError: the processes do not come together.
        ProcessLostError: another process died inside the block.
    """
    join(coordinator=coordinator, num_processes=num_processes, process_id=process_id)
    from maxlm.parallel.agreement import process_count

    if process_count() > 1:
        with _ending_together():
            yield
    else:
        yield


@contextlib.contextmanager
def telling_the_others(**given: Any) -> Iterator[None]:
    """A block before the processes join: where it fails, the others need not wait to find out.

    Args:
        given: as in `find_membership`.
    """
    try:
        yield
    except MaxLMError:
        if find_membership(os.environ, **given) is None:
            raise
        with joined(**given):
            raise


def join(
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Join the processes, if this is one of several and they have not joined yet.

    Raises:
        ParallelError: something is missing or wrong, a process never joins, the port is in use.
    """
    if "jax" in sys.modules:
        import jax

        if jax.distributed.is_initialized():
            return
    member = find_membership(
        os.environ, coordinator=coordinator, num_processes=num_processes, process_id=process_id
    )
    if member is None and not any((coordinator, num_processes, process_id)):
        member = _tpu_pod()
    if member is None:
        return
    import jax
    from jax._src import xla_bridge

    if xla_bridge.backends_are_initialized():
        raise ParallelError(
            f"process {member.process} of {member.count} ({member.source}) has started its devices "
            "before it joined the others; call maxlm first, or jax.distributed.initialize"
        )
    lines = meet(member, _seconds(*JOIN_SECONDS))
    global _lifelines
    _lifelines = Lifelines(lines, _seconds(*HEARTBEAT_SECONDS))
    _initialize(member)


def _tpu_pod() -> Membership | None:
    if "TPU_WORKER_HOSTNAMES" in os.environ or "TPU_PROCESS_ADDRESSES" in os.environ:
        return None  # Kubernetes has said it: one host
    import jax  # noqa: F401  (finds out whether there are TPU chips)

    return from_tpu_metadata()


def _initialize(member: Membership) -> None:
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        member.address,
        member.count,
        member.process,
        local_device_ids=member.local_devices(os.environ),
        cluster_detection_method="deactivate",
        initialization_timeout=int(_seconds(*JOIN_SECONDS)),
        heartbeat_timeout_seconds=int(_seconds(*HEARTBEAT_SECONDS)),
        shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        coordinator_bind_address=bind_address(member.address),
    )


def _seconds(name: str, default: int) -> float:
    text = os.environ.get(name, "")
    with contextlib.suppress(ValueError):
        if not text or float(text) >= 1:
            return float(text or default)
    raise ParallelError(f"{name}={text} is not a number of seconds, at least 1")


@contextlib.contextmanager
def _ending_together() -> Iterator[None]:
    from maxlm.parallel.agreement import Watch, process_index, wait_for_all

    # Held until what another process said has been acted on: a process that ends by an error of
    # its own meanwhile can start no timer any more.
    deciding = threading.Lock()
    failing = False
    said_by_another: list[dict[str, Any]] = []

    def heard(text: str) -> None:
        said = json.loads(text)
        with deciding:
            if failing or said["process"] == process_index():
                return
            said_by_another.append(said)
            _let_go()
            words = FAILED.format(process=said["process"], text=said["text"])
            print(f"{words}; this process ends too", file=sys.stderr, flush=True)
            _leave_soon(said["code"], _AFTER_ANOTHER_FAILED_SECONDS)

    watch = Watch("failed", heard)
    try:
        yield
        wait_for_all("the end", _END_SECONDS)
    except BaseException as error:
        lost = _is_of_connection(error)
        if lost:
            time.sleep(2.0)  # a process that failed may still be saying so
        with deciding:
            if said_by_another:
                raise SystemExit(said_by_another[0]["code"]) from error
            failing = True
        if not lost:
            _let_go()
        code = ProcessLostError.exit_code if lost else _exit_code(error)
        _leave_soon(code, _LAST_WORDS_SECONDS)
        if lost:
            raise ProcessLostError(
                "the connection to another process of the run broke: it has died, or its machine "
                "has (its own log or the launcher says why); run the same command again to go on "
                f"from the newest checkpoint ({' '.join(str(error).split())[:300]})"
            ) from error
        kind = [] if isinstance(error, MaxLMError) else [type(error).__name__]
        text = ": ".join([*kind, *filter(None, [str(error)])])
        said = {"process": process_index(), "code": code, "text": text[:2000]}
        watch.announce(json.dumps(said))
        raise
    _let_go()
    watch.close()


def _let_go() -> None:
    """From here on the others may go, and this process, without a loss."""
    if _lifelines is not None:
        _lifelines.let_go()


def _is_of_connection(error: BaseException) -> bool:
    import jax

    marks = ("gloo", "connection", "socket", "unavailable", "heartbeat", "peer", "barrier")
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, jax.errors.JaxRuntimeError):
            return any(mark in str(seen).lower() for mark in marks)
        seen = seen.__cause__
    return False


def _exit_code(error: BaseException) -> int:
    if isinstance(error, MaxLMError):
        return error.exit_code
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _leave_soon(code: int, seconds: float) -> None:
    """End without the others: jax would wait for them, and they wait for this process."""
    # What stays behind may be a thread in a collective, which nothing else ends.
    timer = threading.Timer(seconds, _leave, (code,))
    timer.daemon = True
    timer.start()
    atexit.register(_leave, code)


def _leave(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    with contextlib.suppress(Exception):  # the store may be lost too
        _say_goodbye()
    os._exit(code)


def _say_goodbye() -> None:
    from maxlm.parallel.agreement import process_count, process_index, store

    left = "maxlm/left/"
    if process_index():
        store().key_value_set(f"{left}{process_index()}", "")
        return
    deadline = time.monotonic() + _OTHERS_LEAVE_SECONDS
    while (
        time.monotonic() < deadline and len(store().key_value_dir_get(left)) < process_count() - 1
    ):
        time.sleep(0.05)
