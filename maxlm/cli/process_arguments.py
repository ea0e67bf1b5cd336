"""The arguments by which a command joins other processes, where no launcher says it."""

from __future__ import annotations

import argparse
from typing import Any


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --coordinator, --num-processes and --process-id."""
    group = parser.add_argument_group(
        "several processes", "Read from Slurm, MPI, TPU pods or JAX_* variables where not given."
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--num-processes", type=int, metavar="N", help="processes in all")
    group.add_argument("--process-id", type=int, metavar="I", help="this one's number, from 0")


def process_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was given, as `maxlm.parallel.processes.joined` takes it."""
    return {
        "coordinator": arguments.coordinator,
        "num_processes": arguments.num_processes,
        "process_id": arguments.process_id,
    }
