"""`maxlm checkpoints` lists, shows and verifies without a model, and exits 2 on damage."""

import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from maxlm.cli.main import main
from maxlm.train.checkpoints import Checkpoints

# A read that Orbax gives up leaves others of its own running; their loop closes under them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "quick"
    checkpoints = Checkpoints(str(run / "checkpoints"))
    for step in (100, 200):
        arrays = {
            "params.embedding.table": jax.random.normal(jax.random.key(step), (64, 128)),
            "optimizer.count": jnp.int32(step),
        }
        metadata = {"cursor": step * 8, "config": {"name": "quick", "model": {"width": 128}}}
        checkpoints.save(step, arrays, metadata, files={"tokenizer/vocab": b"abc"})
    checkpoints.close()
    return run


@pytest.fixture
def run(saved, tmp_path):
    import shutil

    return shutil.copytree(saved, tmp_path / "quick")


def damage(run, step):
    (path,) = [
        p for p in (run / "checkpoints" / str(step)).rglob("d/*") if p.stat().st_size > 30000
    ]
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)


def test_list_shows_steps_sizes_and_states(run, capsys):
    (run / "checkpoints" / "300.orbax-checkpoint-tmp").mkdir()
    (run / "checkpoints" / "200" / "maxlm.json").write_text("{")
    assert main(["checkpoints", "list", str(run)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == str(run / "checkpoints")
    assert printed[1].split() == ["step", "saved", "size", "format", "state"]
    assert printed[2].startswith("100") and "32.8 kB" in printed[2]
    assert printed[2].endswith("1       complete") and "ago" in printed[2]
    assert printed[3].startswith("200") and "damaged: maxlm.json is not readable" in printed[3]
    assert printed[4].startswith("300") and "half-written" in printed[4]


def test_show_prints_metadata_arrays_and_totals(run, capsys):
    assert main(["checkpoints", "show", f"{run}@100"]) == 0
    printed = capsys.readouterr().out
    assert "step 100, format 1" in printed and "cursor: 800" in printed
    lines = [line.split() for line in printed.splitlines()]
    assert ["params.embedding.table", "64×128", "float32", "32.8", "kB"] in [x[:5] for x in lines]
    assert ["total", "8,193", "values", "32.8", "kB"] in lines
    assert "file tokenizer/vocab: 3 B" in printed
    assert "width: 128" not in printed  # --config prints it


def test_show_config_prints_yaml_alone(run, capsys):
    assert main(["checkpoints", "show", str(run), "--config"]) == 0
    assert capsys.readouterr().out == "name: quick\nmodel:\n  width: 128\n"


def test_verify_says_good_and_exits_0(run, capsys):
    assert main(["checkpoints", "verify", str(run)]) == 0
    assert capsys.readouterr().out.startswith("step 200: good, 2 arrays, 32.8 kB")
    assert main(["checkpoints", "verify", f"{run}@100"]) == 0


def test_verify_names_the_damaged_array_and_exits_2(run, capsys):
    damage(run, 100)
    assert main(["checkpoints", "verify", str(run)]) == 0  # the newest is good
    assert main(["checkpoints", "verify", str(run), "--all"]) == 2
    printed = capsys.readouterr().out
    assert "step 100: DAMAGED" in printed and "step 200: good" in printed
    assert "array 'params.embedding.table': its checksum is" in printed
    assert "optimizer.count" not in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "{parent}/qick"], "there is no such run (did you mean 'quick'?)"),
        (["list", "{parent}"], "not a run's folder"),
        (["show", "{run}@150"], "150: this checkpoint does not exist; complete: 100, 200"),
        (["verify", "{run}@x"], "'x' is not a step"),
        (["show", "s3x://bucket/run"], "no storage of kind 's3x://'"),
    ],
)
def test_mistakes_exit_2_with_a_sentence(run, capsys, arguments, said):
    filled = [a.format(parent=run.parent, run=run) for a in arguments]
    assert main(["checkpoints", *filled]) == 2
    assert said in capsys.readouterr().err


def test_a_run_without_checkpoints_says_so(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("name: x\n")
    assert main(["checkpoints", "list", str(tmp_path)]) == 0
    assert "no checkpoints" in capsys.readouterr().out
    assert main(["checkpoints", "verify", str(tmp_path)]) == 2
    assert "there is no complete checkpoint" in capsys.readouterr().err


def test_verifying_a_damaged_checkpoint_prints_no_traceback(run):
    for path in (run / "checkpoints" / "200").rglob("d/*"):
        os.truncate(path, path.stat().st_size // 2)
    done = subprocess.run(
        [sys.executable, "-m", "maxlm.cli.main", "checkpoints", "verify", str(run)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "cannot be read" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_help_answers_at_once_with_examples():
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "maxlm.cli.main", "checkpoints", "--help"],
        capture_output=True,
        text=True,
    )
    assert time.perf_counter() - started < 1.5  # 0.1 s on an idle machine
    assert done.returncode == 0 and "maxlm checkpoints verify runs/quickstart" in done.stdout


def test_large_arrays_are_verified_without_an_accelerator(run):
    code = (
        "import sys\n"
        "from maxlm.cli.main import main\n"
        "from maxlm.train import checkpoint_checks\n"
        "checkpoint_checks._COMPILE_FROM_BYTES = 0\n"
        f"sys.exit(main(['checkpoints', 'verify', {str(run)!r}]))\n"
    )
    # One that this machine does not have: as good as one that a training holds.
    environment = os.environ | {"JAX_PLATFORMS": "tpu,cuda"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "step 200: good" in done.stdout
