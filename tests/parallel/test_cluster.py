import pytest

from maxlm.errors import ParallelError
from maxlm.parallel.cluster import find_membership, first_host

SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "node[007-008]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
TPU_HOSTS = {"TPU_WORKER_HOSTNAMES": "t-0.svc,t-1.svc", "TPU_WORKER_ID": "1"}
TWO_SLICES = TPU_HOSTS | {
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "job-slice-0-0.job:8080",
}
GIVEN = {
    "JAX_COORDINATOR_ADDRESS": "host-0:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "2",
}


@pytest.mark.parametrize(
    ("environment", "count", "process", "host"),
    [
        (SLURM, 4, 3, "node007"),
        (SLURM | {"SLURM_STEP_NUM_NODES": "1"}, 4, 3, "127.0.0.1"),
        (OPEN_MPI, 4, 2, "10.96.0.1"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 4, 2, "127.0.0.1"),
        # mpirun inside of a Slurm allocation: its daemons are tasks, the ranks are Open MPI's.
        (SLURM | OPEN_MPI, 4, 2, "10.96.0.1"),
        (TPU_HOSTS, 2, 1, "t-0.svc"),
        (TWO_SLICES, 4, 3, "job-slice-0-0.job"),
        ({"TPU_PROCESS_ADDRESSES": "a:8476,b:8476", "TPU_WORKER_ID": "0"}, 2, 0, "a"),
        (GIVEN, 4, 2, "host-0"),
        ({"JAX_PROCESS_COUNT": "4", "JAX_PROCESS_INDEX": "1", **{k: GIVEN[k] for k in list(GIVEN)[:1]}}, 4, 1, "host-0"),
        # A pod of an indexed Kubernetes job, told the rest by its manifest.
        (
            {"JAX_COORDINATOR_ADDRESS": "j-0:1", "JAX_NUM_PROCESSES": "8", "JOB_COMPLETION_INDEX": "5"},
            8,
            5,
            "j-0",
        ),
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "10.0.0.9:2222"}, 4, 3, "10.0.0.9"),
    ],
)  # fmt: skip
def test_each_launcher_says_which_process_this_is(environment, count, process, host):
    member = find_membership(environment)
    assert (member.count, member.process) == (count, process)
    assert member.address.rpartition(":")[0] == host


def test_flags_go_before_variables_and_those_before_the_launcher():
    member = find_membership(SLURM | {"JAX_PROCESS_ID": "2"}, coordinator="me:99", num_processes=3)
    assert (member.count, member.process, member.address) == (3, 2, "me:99")


def test_derived_ports_lie_below_those_of_outgoing_connections_and_differ_between_jobs():
    ports = set()
    for job in range(50):
        address = find_membership(SLURM | {"SLURM_JOB_ID": str(job)}).address
        ports.add(int(address.rpartition(":")[2]))
    assert len(ports) > 45 and min(ports) >= 1024 and max(ports) < 32_768
    assert find_membership(SLURM | {"JAX_COORDINATOR_PORT": "999"}).address == "node007:999"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        # A shell of `salloc -n 8`, a batch script with `--ntasks=8`, and `srun -n 1` in it.
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_NNODES": "2"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
        {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", "MEGASCALE_NUM_SLICES": "1"},
        {"JAX_NUM_PROCESSES": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
        {"JOB_COMPLETION_INDEX": "3"},  # a job of pods that work alone
    ],
)
def test_one_process_alone_joins_nobody(environment):
    assert find_membership(environment) is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"JAX_NUM_PROCESSES": "4"},
            "nothing says which of them this is .* nor where process 0 is",
        ),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, r"PMI_SIZE\), but nothing says where process 0 is"),
        ({k: v for k, v in OPEN_MPI.items() if "uri" not in k}, "Open MPI.* where process 0 is"),
        (GIVEN | {"JAX_PROCESS_ID": "4"}, "process 4 of 4: processes are numbered from 0 to 3"),
        (GIVEN | {"JAX_PROCESS_ID": "two"}, "JAX_PROCESS_ID=two is not a number"),
        (GIVEN | {"JAX_COORDINATOR_ADDRESS": "host"}, "'host' is not HOST:PORT"),
        (GIVEN | {"JAX_COORDINATOR_ADDRESS": "host:70000"}, "'host:70000' is not HOST:PORT"),
    ],
)
def test_what_is_missing_or_wrong_is_said(environment, message):
    with pytest.raises(ParallelError, match=message):
        find_membership(environment)


def test_slurm_says_where_the_first_process_is_that_its_pmi_only_numbers():
    pmi = {"PMI_SIZE": "4", "PMI_RANK": "3"}  # srun --mpi=pmi2, on some clusters the default
    assert find_membership(SLURM | pmi) == find_membership(SLURM)
    # Hydra's mpiexec starts one proxy a node by srun: there Slurm counts something else.
    with pytest.raises(ParallelError, match="nothing says where process 0 is"):
        find_membership(SLURM | {"PMI_SIZE": "16", "PMI_RANK": "3"})


def test_several_processes_on_a_machine_take_one_gpu_each():
    slurm = find_membership(SLURM)
    assert slurm.local_devices(SLURM) == [1]
    assert slurm.local_devices({"CUDA_VISIBLE_DEVICES": "0,1"}) == [1]
    assert slurm.local_devices({"CUDA_VISIBLE_DEVICES": "1"}) is None  # srun --gpus-per-task=1
    assert slurm.local_devices({"JAX_LOCAL_DEVICE_IDS": "2,3"}) is None  # jax reads it itself
    alone = find_membership(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)"})
    assert alone.local_devices({}) is None  # and with it all that the machine has


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("node[001-015],host2", "node001"),
        ("node[001,007-015],host2", "node001"),
        ("rack[2-3]node[5,7]", "rack2node5"),
        ("", ""),
    ],
)
def test_the_first_of_slurms_hosts(hosts, first):
    assert first_host(hosts) == first
