"""Noticing that a process of the run has died, before jax does, and ending with a status that says so.

In: the connections that `rendezvous` leaves open, of every process with the first. A process that is
killed, or whose machine ends, closes its own; the first tells the others whose. Then each ends with
status 75, "run it again".

jax notices too, by the heartbeats, or at once where the first process is gone: it aborts from C++
(status 134, as after a mistake of its own), and the callback that it offers for this aborts as well
(jax 0.10 and 0.12). So an abort waits here for some seconds, in which a lost process is told apart.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import socket
import sys
import threading

PROCESS_LOST = 75  # run it again (EX_TEMPFAIL of sysexits.h)
LOST = "maxlm: process {process} has died"

# What a process that failed says of it comes another way, and goes first; less than an abort waits.
_GRACE_SECONDS = 3.0
_LET_GO = b"let go"
_IS_LOST = b"lost "


class Lifelines:
    """Watches the other processes in a thread of its own, until `let_go`."""

    def __init__(self, lines: dict[int, socket.socket], silence_seconds: float):
        """Begin to watch.

        Args:
            lines: open connections by the process at the other end, as `rendezvous.meet` returns.
            silence_seconds: after how long a machine that answers nothing counts as dead, at most.
        """
        self._lines = lines
        self._over = threading.Event()
        self._selector = selectors.DefaultSelector()
        for process, line in lines.items():
            line.settimeout(_GRACE_SECONDS)
            _keep_alive(line, silence_seconds)
            self._selector.register(line, selectors.EVENT_READ, process)
        _let_aborts_wait()
        threading.Thread(target=self._watch, name="lifelines", daemon=True).start()

    def let_go(self) -> None:
        """Tell the others that this process ends in order; theirs may end too from here on."""
        if not self._over.is_set():
            self._over.set()
            self._tell(_LET_GO)

    def _watch(self) -> None:
        while self._selector.get_map():
            for key, _ in self._selector.select():
                line, process = key.fileobj, key.data
                assert isinstance(line, socket.socket)
                said = b""
                with contextlib.suppress(OSError):
                    said = line.recv(4096)
                if not said or _LET_GO in said:
                    self._selector.unregister(line)
                if not said:
                    self._end(process)
                elif _IS_LOST in said:
                    self._end(int(said.partition(_IS_LOST)[2].split()[0]))

    def _end(self, process: int) -> None:
        """End this process, unless it is ending, for another process's loss."""
        if self._over.is_set():
            return
        self._tell(_IS_LOST + str(process).encode())
        if self._over.wait(_GRACE_SECONDS):
            return
        words = f"{LOST.format(process=process)}, or its machine has: run the same command again"
        with contextlib.suppress(OSError, ValueError):
            print(f"{words}; this process ends with status {PROCESS_LOST}", file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(PROCESS_LOST)

    def _tell(self, text: bytes) -> None:
        for line in self._lines.values():
            with contextlib.suppress(OSError):
                line.sendall(text + b"\n")


def _keep_alive(line: socket.socket, seconds: float) -> None:
    """Have the kernel ask for an answer, so that a line to a dead machine breaks in time."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Two thirds of it, so that jax, who waits as long, is not first.
    for name, value in (("IDLE", seconds / 3), ("INTVL", seconds / 9), ("CNT", 3)):
        if hasattr(socket, f"TCP_KEEP{name}"):
            option = getattr(socket, f"TCP_KEEP{name}")
            line.setsockopt(socket.IPPROTO_TCP, option, max(1, int(value)))


def _let_aborts_wait() -> None:
    """Have `abort` sleep for six seconds first, without a need of Python's lock.

    A handler is called with the signal's number, and `sleep` takes seconds: SIGABRT's is 6.
    """
    libc = ctypes.CDLL(None)
    handler = ctypes.cast(libc.sleep, ctypes.c_void_p)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    libc.signal(int(signal.SIGABRT), handler)
