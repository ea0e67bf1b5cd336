"""Waiting until all processes of a run are there, and saying which are not.

jax's own start ends the whole process from C++ when another never joins, and crashes when the port
is in use (jax 0.10.2); nothing can then say who was missing. So the processes meet here before: all
call the first one on the coordinator's port, which answers when every one has called, or says who
has not. Then the port is free again, for jax; the connections stay, for `lifelines`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import socket
import time
from collections.abc import Iterable
from typing import Any

from maxlm.errors import ParallelError
from maxlm.parallel.cluster import Membership

GREETING = "maxlm-join-1"
_ANSWER_SECONDS = 5.0  # for a caller to say who it is
_RETRY_SECONDS = 0.1


def meet(member: Membership, timeout_seconds: float) -> dict[int, socket.socket]:
    """Return when all processes have called this.

    Returns:
        Open connections by the process at the other end: the first process has one to each of the
        others, and those have one to it.

    Raises:
        ParallelError: time is up (who is missing), the port is in use, or two say that they are the
            same process. Every process that has joined is told and raises too.
    """
    host, _, port = member.address.rpartition(":")
    host = host.strip("[]")
    deadline = time.monotonic() + timeout_seconds
    if member.process == 0:
        return _gather(member, host, int(port), deadline, timeout_seconds)
    return {0: _call(member, host, int(port), deadline, timeout_seconds)}


def bind_address(address: str) -> str:
    """Where the first process listens: on this machine only, if that is where all call it."""
    host, _, port = address.rpartition(":")
    if _is_loopback(host):
        return f"127.0.0.1:{port}"
    return f"[::]:{port}" if socket.has_dualstack_ipv6() else f"0.0.0.0:{port}"


def describe(processes: Iterable[int], limit: int = 12) -> str:
    """Numbers in words: `process 3`, `processes 1, 2 and 20 more`."""
    numbers = list(processes)
    shown = ", ".join(map(str, numbers[:limit]))
    more = f" and {len(numbers) - limit} more" if len(numbers) > limit else ""
    return f"process{'es' if len(numbers) > 1 else ''} {shown}{more}"


def _gather(
    member: Membership, host: str, port: int, deadline: float, seconds: float
) -> dict[int, socket.socket]:
    """The first process: wait for the others' calls and answer them all at once."""
    _allow_connections(member.count)
    callers: dict[int, tuple[socket.socket, str]] = {}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(host, port))
        error = ""
        while len(callers) < member.count - 1 and not error:
            left = deadline - time.monotonic()
            if left <= 0:
                missing = [i for i in range(1, member.count) if i not in callers]
                error = (
                    f"{describe(missing)} of {member.count} did not join within {seconds:.0f} s "
                    f"(process 0 waits at {member.address}); look whether they were started, "
                    "ended early, or cannot reach that address"
                )
                break
            server.settimeout(left)
            with contextlib.suppress(TimeoutError):
                caller, _ = server.accept()
                stack.enter_context(caller)
                error = _take(caller, member, callers)
            if len(callers) == member.count - 1:  # all have called, and all are to be there still
                _forget_who_left(callers)
        for caller, _ in callers.values():
            with contextlib.suppress(OSError):  # it has gone; jax's own start will see that
                caller.sendall(json.dumps({"greeting": GREETING, "error": error}).encode() + b"\n")
        if error:
            raise ParallelError(error)
        stack.pop_all()
    server.close()
    return {process: caller for process, (caller, _) in callers.items()}


def _take(
    caller: socket.socket, member: Membership, callers: dict[int, tuple[socket.socket, str]]
) -> str:
    """Note who calls; returns what is wrong with it."""
    hello = _receive(caller, _ANSWER_SECONDS)
    if hello is None:  # some other program's knock
        return ""
    process, count, where = hello.get("process"), hello.get("count"), hello.get("where")
    if not isinstance(process, int) or count != member.count:
        error = (
            f"process {process} ({where}) was started as one of {count} processes, but process 0 "
            f"({_here()}) as one of {member.count}"
        )
    elif process == 0 or (process in callers and _is_there(callers[process][0])):
        first = callers[process][1] if process in callers else _here()
        error = f"two processes say that they are process {process}: {first} and {where}"
    else:
        callers[process] = (caller, str(where))
        return ""
    with contextlib.suppress(OSError):
        caller.sendall(json.dumps({"greeting": GREETING, "error": error}).encode() + b"\n")
    return error


def _forget_who_left(callers: dict[int, tuple[socket.socket, str]]) -> None:
    for process in [p for p, (caller, _) in callers.items() if not _is_there(caller)]:
        del callers[process]


def _is_there(caller: socket.socket) -> bool:
    """Whether who called has not hung up: it was ended, and perhaps started again."""
    caller.setblocking(False)  # with a timeout, Python would wait for it
    try:
        return bool(caller.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        caller.settimeout(_ANSWER_SECONDS)


def _call(
    member: Membership, host: str, port: int, deadline: float, seconds: float
) -> socket.socket:
    """Any other process: call the first one until it answers."""
    hello = {
        "greeting": GREETING,
        "process": member.process,
        "count": member.count,
        "where": _here(),
    }
    trouble = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            line = socket.create_connection((host, port), timeout=min(left, 10.0))
        except OSError as error:
            trouble = error.strerror or str(error)
        else:
            answer = _ask(line, hello, left + _ANSWER_SECONDS)
            if answer is not None and not answer["error"]:
                return line
            line.close()
            if answer is not None:
                raise ParallelError(answer["error"])
        time.sleep(_RETRY_SECONDS)
    raise ParallelError(
        f"process {member.process} of {member.count} could not join process 0 at {member.address} "
        f"within {seconds:.0f} s ({trouble}): process 0 never joined, or this address is not its "
        f"own (it comes from {member.source})"
    )


def _ask(line: socket.socket, hello: dict[str, Any], seconds: float) -> dict[str, Any] | None:
    """Greet the first process and wait for its answer, which it may give later than we give up."""
    with contextlib.suppress(OSError):
        line.sendall(json.dumps(hello).encode() + b"\n")
        return _receive(line, seconds)
    return None


def _listen(host: str, port: int) -> socket.socket:
    try:
        if _is_loopback(host):
            return socket.create_server(("127.0.0.1", port), backlog=1024)
        if socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
        return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ParallelError(
                f"port {port} is in use on {socket.gethostname()}: another run or program has it; "
                "end that, or choose another (--coordinator HOST:PORT, or JAX_COORDINATOR_PORT)"
            ) from error
        raise ParallelError(
            f"process 0 cannot listen on port {port} of {socket.gethostname()}: {error.strerror}"
        ) from error


def _receive(line: socket.socket, seconds: float) -> dict[str, Any] | None:
    """One greeting; None from what does not speak as maxlm does, or has gone."""
    deadline = time.monotonic() + seconds
    text = b""
    try:
        while not text.endswith(b"\n") and len(text) < 100_000:
            line.settimeout(max(0.01, deadline - time.monotonic()))
            part = line.recv(65_536, socket.MSG_PEEK)
            if not part:
                return None
            # No further than its end: what follows is for `lifelines`.
            text += line.recv(part.index(b"\n") + 1 if b"\n" in part else len(part))
        said = json.loads(text)
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) and said.get("greeting") == GREETING else None


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.")


def _here() -> str:
    return f"{socket.gethostname()} pid {os.getpid()}"


def _allow_connections(count: int) -> None:
    """Raise the limit of open files where thousands of processes call."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
