"""`maxlm plan` from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from maxlm.cli.main import main

SMALL = [
    *("models/nano-4x128", "model.vocab_size=512", "model.head_dim=128"),
    *("data.batch_size=8", "data.length=256", "train.duration=1000 steps"),
]


def plan(*arguments: str, code: int = 0) -> None:
    assert main(["plan", *SMALL, *arguments]) == code


def test_gpus_are_planned_by_arithmetic(capsys):
    plan("hardware/h100", "--topology", "h100x8", "--json", "-")
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "analytic" and found["chips"] == 8
    assert found["rows_at_once"] == 1
    assert found["cost"]["dollars"] > 0 and "scaling-book" in found["cost"]["price"]


def test_a_pod_without_compiling(tmp_path, capsys):
    page = tmp_path / "plan.html"
    plan("hardware/v5e", "--topology", "v5e-4", "--no-compile", "--html", str(page))
    assert "Fits" in capsys.readouterr().out
    assert page.stat().st_size > 5000


@pytest.mark.slow
def test_a_pod_compiled(tmp_path, capsys):
    pytest.importorskip("libtpu")
    file = tmp_path / "plan.json"
    given = ("hardware/v5e", "--topology", "v5e-4", "--store", str(tmp_path / "store"))
    plan(*given, "--json", str(file), "--explain")
    told = capsys.readouterr()
    assert "v5e-4: compiling" in told.err and "step is bound by" in told.out
    found = json.loads(file.read_text())
    assert found["method"] == "compiled" and found["memory"]["parameters"] > 0
    assert found["rows_at_once"] == 2
    assert found["time"]["matmuls"] > 0 and found["collectives"]
    assert any(operation["source"].startswith("maxlm/model/") for operation in found["operations"])


def test_a_state_that_is_too_large_is_not_compiled_and_exits_2(capsys):
    pytest.importorskip("libtpu")
    given = ["models/llama3-70b", "hardware/v5e", "data.batch_size=4", "train.duration=9 steps"]
    assert main(["plan", *given, "--topology", "v5e-4"]) == 2
    told = capsys.readouterr()
    # 70,553,706,496 parameters of 12 bytes over 15.75 GiB a chip: 50.06.
    assert "Does not fit" in told.out and "at least 51 chips" in told.out.replace("\n  ", " ")
    assert "v5e-64" in told.out
    assert "compiling" not in told.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--topology", "v5q-8"], "did you mean 'v5p'"),
        (["--topology", "v5p-100"], "v5p-64 (2x4x4) and v5p-128 (4x4x4)"),
        (["parallel.fsdp=3", "--topology", "h100x8"], "3"),
        (["--topology", "h100x8", "--prices", "none.yaml"], "none.yaml"),
        (["--topology", "h100x8", "--html", "-"], "need a file each"),
        (["--topology", "h100x8", "--html", "x", "--json", "x"], "need a file each"),
        (["--topology", "h100x8", "--search", "--output", "x", "--json", "x"], "need a file each"),
        (["--topology", "h100x8", "--json", "tests"], "nothing can be written there"),
    ],
)
def test_mistakes_exit_2_and_are_told(arguments, said, capsys):
    plan(*arguments, code=2)
    assert said in capsys.readouterr().err


def test_a_vocabulary_that_nobody_tells_is_asked_for(capsys):
    given = ["models/gpt2-124m", "model.vocab_size=null", "data.batch_size=8"]
    assert main(["plan", *given, "hardware/h100", "--topology", "h100x8"]) == 2
    assert "vocab" in capsys.readouterr().err
    assert (
        main(["plan", *given, "hardware/h100", "--topology", "h100x8", "--vocab-size", "512"]) == 0
    )


def test_help_is_quick_and_shows_examples():
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "maxlm.cli.main", "plan", "--help"], capture_output=True, text=True
    )
    assert time.perf_counter() - began < 2.0  # a fifth of it where nothing else runs
    assert "exit status" in done.stdout and "v5litepod-64" in done.stdout
