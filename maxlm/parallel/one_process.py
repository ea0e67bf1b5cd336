"""Refusing a start of several processes, which maxlm does not join into one run yet.

Unjoined, each would train a whole run of its own in the same folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from maxlm.errors import ParallelError

# What launchers tell a process, as jax's cluster detection reads it. Slurm's count is the step's:
# a shell of `salloc` or a batch script knows the job's tasks, but is one process.
COUNTS = (
    "SLURM_STEP_NUM_TASKS",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MEGASCALE_NUM_SLICES",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_COUNT",
)
HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")


def require_one_process(environment: Mapping[str, str] | None = None) -> None:
    """Raise ParallelError when the environment says that this is one process of several."""
    environment = os.environ if environment is None else environment
    for name in COUNTS:
        text = environment.get(name, "").strip()
        if text.isdecimal() and int(text) > 1:
            _refuse(f"{name}={text} says that {text} processes were started")
    for name in HOSTS:
        hosts = [host for host in environment.get(name, "").split(",") if host.strip()]
        if len(hosts) > 1:
            _refuse(f"{name} names {len(hosts)} hosts, each with a process")


def require_own_devices(process_count: int) -> None:
    """Raise ParallelError when jax's devices belong to several processes (a TPU pod's do)."""
    if process_count > 1:
        _refuse(f"the devices belong to {process_count} processes")


def _refuse(what: str) -> None:
    raise ParallelError(
        f"{what}; joining processes into one run is not built yet, and each would train its own "
        "run in the same folder. Start one process, on one machine (on one that is part of a "
        "cluster or pod: with that variable unset)"
    )
