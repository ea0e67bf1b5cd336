"""Several processes of one command on this machine, watched as one.

In go the words of a `maxlm` command and how many processes; out comes one exit status. Each process
is told its place by JAX_* variables. The first one's output is shown, everybody's is kept in files.
When one dies the others are ended, and who died, of what, and its last lines are said. Imports
nothing heavy.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

from maxlm.errors import ParallelError
from maxlm.parallel.cluster import FIRST_PORT, NUM_PORTS
from maxlm.parallel.processes import FAILED

PREEMPTED = 75  # run it again (EX_TEMPFAIL of sysexits.h)
# Ends that a run has as a whole: the others are on their way too, perhaps through a last save.
ORDERLY = (0, PREEMPTED, 128 + signal.SIGINT)
# Time for those left to notice that one died and to say what they know, before they are killed.
GRACE_SECONDS = 15.0
# Here a process is dead within a moment, not cut off by a network.
HEARTBEAT_SECONDS = 10
LAST_LINES = 20
# A process whose environment has this ends with the launcher of this id: nobody reads it then.
LAUNCHER = "MAXLM_LAUNCHER_PID"
_FAILED = re.compile("^" + FAILED.format(process=r"(\d+)", text=""), re.MULTILINE)


@dataclass
class Process:
    """One process of the run, and how it ended (`exit`: -N where signal N killed it)."""

    number: int
    child: subprocess.Popen
    log: Path
    exit: int | None = None
    ended_by_us: bool = False
    reader: threading.Thread | None = field(default=None, repr=False)

    @property
    def reason(self) -> str:
        """How it ended, in words."""
        assert self.exit is not None
        if self.exit >= 0:
            return f"exited with status {self.exit}"
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-self.exit).name}"
        return f"was killed by signal {-self.exit}"

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.log.read_bytes().decode(errors="replace") if self.log.exists() else ""

    @property
    def status(self) -> int:
        """Its exit status as a shell tells it."""
        assert self.exit is not None
        return self.exit if self.exit >= 0 else 128 - self.exit


def launch(
    command: Sequence[str],
    *,
    processes: int,
    devices_per_process: int = 1,
    logs: str | None = None,
    output: IO[str] | None = None,
) -> int:
    """Run `maxlm COMMAND` in several processes until all have ended.

    SIGTERM and Ctrl-C are passed on to all of them.

    Args:
        command: words after `maxlm`, such as `["train", "runs/quickstart"]`.
        processes: how many.
        devices_per_process: CPU devices that each has, or GPUs that each takes.
        logs: folder of what each process printed; a temporary one by default.
        output: where the first process's lines go; stdout by default.

    Returns:
        The run's exit status: of the process that died, or what all ended with.

    Raises:
        ParallelError: a number makes no sense.
    """
    if processes < 1 or devices_per_process < 1:
        raise ParallelError(
            f"{processes} processes with {devices_per_process} devices each: both must be at least 1"
        )
    folder = Path(logs or tempfile.mkdtemp(prefix="maxlm-local-"))
    folder.mkdir(parents=True, exist_ok=True)
    printer = _Printer(output or sys.stdout)
    environments = _environments(processes, devices_per_process)
    printer.say(f"{processes} processes, what each prints is in {folder}")
    ended: queue.Queue[Process] = queue.Queue()
    group: list[Process] = []
    try:
        with _signals_passed_on(group):
            for number, environment in enumerate(environments):
                group.append(_start(number, command, environment, folder, printer, ended))
            over = _wait(group, ended)
    finally:
        for process in group:
            if process.child.poll() is None:
                process.child.kill()
    for process in group:
        if process.reader is not None:
            process.reader.join(5)
    culprit = _culprit(over)
    if culprit is None:
        return max((p.status for p in group), default=0)
    printer.say(f"process {culprit.number} {culprit.reason}; the others were ended")
    if culprit.number:  # the first one's lines stand above
        _show_last_lines(culprit, printer)
    return culprit.status


def free_port() -> int:
    """A port that nobody listens on, below those of outgoing connections."""
    for port in random.Random(os.urandom(8)).sample(range(FIRST_PORT, FIRST_PORT + NUM_PORTS), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise ParallelError(f"no free port from {FIRST_PORT} to {FIRST_PORT + NUM_PORTS - 1}")


def _environments(processes: int, devices: int) -> list[dict[str, str]]:
    """Each process's environment."""
    shared = {
        **_without_launchers(os.environ),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_NUM_CPU_DEVICES": str(devices),
        "MAXLM_HEARTBEAT_SECONDS": os.environ.get(
            "MAXLM_HEARTBEAT_SECONDS", str(HEARTBEAT_SECONDS)
        ),
        "PYTHONUNBUFFERED": "1",
        LAUNCHER: str(os.getpid()),
    }
    return [
        {
            **shared,
            "JAX_PROCESS_ID": str(number),
            "JAX_LOCAL_DEVICE_IDS": ",".join(
                str(device) for device in range(number * devices, (number + 1) * devices)
            ),
        }
        for number in range(processes)
    ]


def _without_launchers(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without another word on who the process is, its port and its devices."""
    ours = ("JAX_COORDINATOR_PORT", "JAX_PROCESS_COUNT", "JAX_PROCESS_INDEX")
    kept = {name: value for name, value in environment.items() if name not in ours}
    if "XLA_FLAGS" in kept:  # jax refuses two numbers of CPU devices
        flags = kept["XLA_FLAGS"].split()
        kept["XLA_FLAGS"] = " ".join(f for f in flags if "host_platform_device_count" not in f)
    return kept


def _start(
    number: int,
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    printer: _Printer,
    ended: queue.Queue[Process],
) -> Process:
    child = subprocess.Popen(
        [sys.executable, "-m", "maxlm.cli.main", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        process_group=0,  # a Ctrl-C of the terminal reaches it through us, once
    )
    process = Process(number, child, folder / f"process-{number}.log")

    def read() -> None:
        assert child.stdout is not None
        with open(process.log, "wb") as log:
            for line in child.stdout:
                log.write(line)
                log.flush()
                if number == 0:
                    printer.show(number, line.decode(errors="replace").rstrip("\n"))

    def wait() -> None:
        process.exit = child.wait()
        ended.put(process)

    process.reader = threading.Thread(target=read, daemon=True)
    process.reader.start()
    threading.Thread(target=wait, daemon=True).start()
    return process


def _wait(group: list[Process], ended: queue.Queue[Process]) -> list[Process]:
    """Wait for all, and no longer than a while once one died; in the order of their ends."""
    deadline: float | None = None
    over: list[Process] = []
    while len(over) < len(group):
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            over.append(ended.get(timeout=0.2 if left is None else min(left, 0.2)))
        except queue.Empty:
            if left == 0.0:
                for process in group:
                    if process.exit is None:
                        process.ended_by_us = True
                        process.child.kill()
                deadline = float("inf")
            continue
        if over[-1].status not in ORDERLY and deadline is None:
            deadline = time.monotonic() + GRACE_SECONDS
    return over


def _culprit(over: list[Process]) -> Process | None:
    """Of processes in the order of their ends, the one that the others ended for."""
    died = [p for p in over if p.status not in ORDERLY and not p.ended_by_us]
    # jax aborts those that lost another; a crash of their own would look the same.
    first = next((p for p in died if p.exit != -signal.SIGABRT), next(iter(died), None))
    said = _FAILED.findall(first.text) if first is not None else []
    return next((p for p in over if said and p.number == int(said[0])), first)


@contextlib.contextmanager
def _signals_passed_on(group: list[Process]) -> Iterator[None]:
    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in group:
            if process.child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.child.send_signal(number)

    previous: dict[int, Any] = {}
    for number in (int(signal.SIGTERM), int(signal.SIGINT)):
        # Outside the main thread (ValueError) its owner handles signals.
        with contextlib.suppress(ValueError):
            previous[number] = signal.signal(number, pass_on)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _show_last_lines(process: Process, printer: _Printer) -> None:
    lines = process.text.splitlines()[-LAST_LINES:]
    printer.say(f"its last lines ({process.log}):" if lines else "it printed nothing")
    for line in lines:
        printer.show(process.number, line)


class _Printer:
    """Writes whole lines, each with the number of the process that it is of."""

    def __init__(self, stream: IO[str]):
        self._stream = stream
        self._lock = threading.Lock()

    def show(self, number: int, line: str) -> None:
        """Show a process's line."""
        self._write(f"[{number}] {line}")

    def say(self, text: str) -> None:
        """Say something of our own."""
        self._write(f"maxlm launch: {text}")

    def _write(self, line: str) -> None:
        # A terminal that has gone away ends the showing, not the run.
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._stream.write(line + "\n")
            self._stream.flush()
