import pytest

from maxlm.errors import ParallelError
from maxlm.parallel.one_process import require_one_process, require_own_devices
from tests.small_run import call


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}, "SLURM_STEP_NUM_TASKS=8 .* 8 proc"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "2 processes"),
        ({"PMI_SIZE": "2"}, "2 processes"),
        ({"MEGASCALE_NUM_SLICES": "2", "TPU_WORKER_HOSTNAMES": "a"}, "MEGASCALE_NUM_SLICES=2"),
        ({"JAX_NUM_PROCESSES": "4"}, "not built yet"),
        ({"JAX_PROCESS_COUNT": "4"}, "not built yet"),
        ({"TPU_WORKER_HOSTNAMES": "t-0.svc,t-1.svc"}, "TPU_WORKER_HOSTNAMES names 2 hosts"),
        ({"TPU_PROCESS_ADDRESSES": "a:8476,b:8476,c:8476"}, "names 3 hosts"),
    ],
)
def test_one_process_of_several_is_refused(environment, message):
    with pytest.raises(ParallelError, match=message):
        require_one_process(environment)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        # A shell of `salloc -n 8`, a batch script with `--ntasks=8`, and `srun -n 1` in it.
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_NNODES": "2"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1", "JAX_NUM_PROCESSES": "", "MEGASCALE_NUM_SLICES": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
    ],
)
def test_one_process_alone_is_not(environment):
    require_one_process(environment)


def test_devices_of_several_processes_are_refused():
    require_own_devices(1)
    with pytest.raises(ParallelError, match="belong to 16 processes"):
        require_own_devices(16)


@pytest.mark.parametrize("command", ["train", "eval"])
def test_the_commands_refuse_before_they_write(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    subject = {"train": ["runs/quickstart", f"output={tmp_path}/runs"], "eval": [str(tmp_path)]}
    assert call(command, *subject[command]) == 2
    error = capsys.readouterr().err
    assert "8 processes were started" in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())
