"""Which of how many processes this one is, as flags, environment or launcher say.

In goes an environment; out comes a `Membership`, or None for a process that trains alone. A pure
function of its arguments, but for Cloud TPU VMs outside Kubernetes, whose metadata server jax asks.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from maxlm.errors import ParallelError

# Ports that are derived lie below the range that systems give to outgoing connections (32768 on
# Linux), where one may be taken at any moment.
FIRST_PORT, NUM_PORTS = 20_000, 12_000
TPU_PORT = 8482  # jax's own choice for TPU pods, whose firewalls may know it

NUM_PROCESSES = ("JAX_NUM_PROCESSES", "JAX_PROCESS_COUNT")
# The last is what Kubernetes tells the pods of an indexed job.
PROCESS_ID = ("JAX_PROCESS_ID", "JAX_PROCESS_INDEX", "JOB_COMPLETION_INDEX")
ADDRESS = "JAX_COORDINATOR_ADDRESS"
PORT = "JAX_COORDINATOR_PORT"
DEVICES = "JAX_LOCAL_DEVICE_IDS"


@dataclass(frozen=True)
class Membership:
    """One process of several.

    Attributes:
        source: who said so, for people.
        count: processes in all.
        process: this one's number, from 0.
        address: `HOST:PORT` of process 0; empty while it is not known.
        local_process: its number on this machine.
        local_count: processes on this machine.
    """

    source: str
    count: int
    process: int
    address: str = ""
    local_process: int = 0
    local_count: int = 1

    def local_devices(self, environment: Mapping[str, str]) -> list[int] | None:
        """GPUs that this process takes; None: all that it sees.

        Several processes on one machine take one each, unless each sees but one (`srun
        --gpus-per-task=1`) or `JAX_LOCAL_DEVICE_IDS` says it.
        """
        visible = environment.get("CUDA_VISIBLE_DEVICES", "")
        if environment.get(DEVICES) or self.local_count == 1 or (visible and "," not in visible):
            return None
        return [self.local_process]


def find_membership(
    environment: Mapping[str, str],
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Membership | None:
    """Read who this process is; what is given goes before JAX_* variables, these before launchers'.

    Args:
        environment: the process's environment variables.
        coordinator: `HOST:PORT` of process 0.
        num_processes: processes in all.
        process_id: this one's number, from 0.

    Returns:
        None where this process is alone.

    Raises:
        ParallelError: something is missing or makes no sense.
    """
    # A pod of an indexed job is one of several only when something says of how many.
    counted = num_processes is not None or any(environment.get(n) for n in NUM_PROCESSES)
    ids = PROCESS_ID if counted else PROCESS_ID[:2]
    said = _launched(environment)
    count = _first(num_processes, environment, NUM_PROCESSES, said.count if said else None)
    process = _first(process_id, environment, ids, said.process if said else None)
    address = coordinator or environment.get(ADDRESS, "") or (said.address if said else "")
    if count is None and process is None and not address:
        return None
    if count == 1:
        return None
    missing = [
        text
        for value, text in (
            (count, f"how many processes there are (--num-processes or {NUM_PROCESSES[0]})"),
            (process, f"which of them this is (--process-id or {PROCESS_ID[0]})"),
            (address, f"where process 0 is (--coordinator or {ADDRESS}, HOST:PORT)"),
        )
        if value is None or value == ""
    ]
    if missing:
        raise ParallelError(
            "this process was started as one of several"
            f"{f' ({said.source})' if said else ''}, but nothing says {' nor '.join(missing)}; "
            "to run one process alone, unset those variables"
        )
    assert count is not None and process is not None
    if count < 1 or not 0 <= process < count:
        raise ParallelError(
            f"process {process} of {count}: processes are numbered from 0 to {max(count, 1) - 1}"
        )
    member = said or Membership("flags or JAX_* variables", count, process)
    return replace(member, count=count, process=process, address=_with_port(address, environment))


def from_tpu_metadata() -> Membership | None:
    """The place of a Cloud TPU VM in its pod, from its metadata server; None elsewhere."""
    # jax finds out whether there are TPU chips at all, and asks no server where there are none.
    from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster

    if not GceTpuCluster.is_env_present() or GceTpuCluster.get_process_count() == 1:
        return None
    return Membership(
        "the TPU's metadata server",
        GceTpuCluster.get_process_count(),
        GceTpuCluster.get_process_id(),
        GceTpuCluster.get_coordinator_address(60, None),
    )


def _launched(environment: Mapping[str, str]) -> Membership | None:
    for launcher in (_open_mpi, _mpich, _slurm, _tpu_hosts):
        member = launcher(environment)
        if member is not None and member.count > 1:
            return member if member.address else _placed_by_slurm(member, environment)
    return None


def _placed_by_slurm(member: Membership, environment: Mapping[str, str]) -> Membership:
    """What Slurm says of a process that it numbers alike, as `srun --mpi=pmi2` does for all."""
    slurm = _slurm(environment)
    alike = slurm and (slurm.count, slurm.process) == (member.count, member.process)
    return slurm if slurm and alike else member


def _open_mpi(environment: Mapping[str, str]) -> Membership | None:
    count = _number(environment, "OMPI_COMM_WORLD_SIZE")
    process = _number(environment, "OMPI_COMM_WORLD_RANK")
    if count is None or process is None:
        return None
    local_count = _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE") or 1
    # Open MPI 4 names mpirun's machine; 5 does not, and has another name for the job.
    uri = environment.get("OMPI_MCA_orte_hnp_uri", "")
    port = _port_of(uri.split(";")[0] or environment.get("PMIX_NAMESPACE", ""))
    host = "127.0.0.1" if local_count == count else ""
    if match := re.search(r"tcp://([^,:]+)|tcp6://\[([^,\]]+)", uri):
        host = host or match[1] or f"[{match[2]}]"
    return Membership(
        "Open MPI",
        count,
        process,
        f"{host}:{port}" if host else "",
        _number(environment, "OMPI_COMM_WORLD_LOCAL_RANK") or 0,
        local_count,
    )


def _mpich(environment: Mapping[str, str]) -> Membership | None:
    count, process = _number(environment, "PMI_SIZE"), _number(environment, "PMI_RANK")
    if count is None or process is None:
        return None
    return Membership(
        "MPI's PMI_SIZE",
        count,
        process,
        "",
        _number(environment, "MPI_LOCALRANKID") or 0,
        _number(environment, "MPI_LOCALNRANKS") or 1,
    )


def _slurm(environment: Mapping[str, str]) -> Membership | None:
    # The step's tasks: a shell of `salloc` or a batch script knows the job's, but is one process.
    count = _number(environment, "SLURM_STEP_NUM_TASKS")
    process = _number(environment, "SLURM_PROCID")
    if count is None or process is None:
        return None
    hosts = environment.get("SLURM_STEP_NODELIST", "")
    host = first_host(hosts)
    if environment.get("SLURM_STEP_NUM_NODES") == "1":
        host = "127.0.0.1"
    step = f"{environment.get('SLURM_JOB_ID', '')}.{environment.get('SLURM_STEP_ID', '')}"
    tasks = _tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    node = _number(environment, "SLURM_NODEID") or 0
    return Membership(
        "Slurm",
        count,
        process,
        f"{host}:{_port_of(step)}" if host else "",
        _number(environment, "SLURM_LOCALID") or 0,
        tasks[node] if node < len(tasks) else 1,
    )


def _tpu_hosts(environment: Mapping[str, str]) -> Membership | None:
    """A host of a TPU slice in Kubernetes, of several slices where MEGASCALE_* says so."""
    names = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    hosts = [host.strip() for host in names.split(",") if host.strip()]
    worker = _number(environment, "TPU_WORKER_ID")
    if not hosts or (worker is None and len(hosts) > 1):
        return None
    slices = _number(environment, "MEGASCALE_NUM_SLICES") or 1
    number = _number(environment, "MEGASCALE_SLICE_ID") or 0
    host = environment.get("MEGASCALE_COORDINATOR_ADDRESS", "") if slices > 1 else hosts[0]
    return Membership(
        "the TPU's environment",
        len(hosts) * slices,
        (worker or 0) + number * len(hosts),
        f"{host.split(':')[0]}:{TPU_PORT}" if host else "",
    )


def first_host(hosts: str) -> str:
    """The first of Slurm's host list: `a[007-015,3],b` gives `a007`."""
    match = re.match(r"(?:[^,\[]|\[[^\]]*\])*", hosts)
    return re.sub(r"\[([^,\]-]*)[^\]]*\]", r"\1", match[0] if match else "")


def _tasks_per_node(text: str) -> list[int]:
    """Slurm's `2(x3),1` as [2, 2, 2, 1]."""
    tasks: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        tasks += [int(count)] * int(times or 1)
    return tasks


def _with_port(address: str, environment: Mapping[str, str]) -> str:
    host, _, port = address.rpartition(":")
    port = environment.get(PORT) or port
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ParallelError(f"coordinator address '{address}' is not HOST:PORT")
    return f"{host}:{port}"


def _port_of(job: str) -> int:
    """A port that all processes of a job agree on, and another job hardly has."""
    return FIRST_PORT + zlib.crc32(job.encode()) % NUM_PORTS


def _first(
    given: int | None, environment: Mapping[str, str], names: tuple[str, ...], launched: int | None
) -> int | None:
    if given is not None:
        return given
    found = (_number(environment, name) for name in names)
    return next((number for number in found if number is not None), launched)


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "").strip()
    if text and not text.isdecimal():
        raise ParallelError(f"{name}={text} is not a number")
    return int(text) if text else None
