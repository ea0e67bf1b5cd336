"""The weak-scaling tool: which topologies, which batch and mesh, and a table by arithmetic."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from maxlm.errors import ConfigError
from maxlm.plan.topology import parse_topology

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tools")]

from plan_scaling import default_topologies, scaled_overrides  # noqa: E402

PRESETS = ["models/gpt2-124m", "hardware/v5e"]


def overrides(*given: str, to: str, base: str = "v5e-16") -> list[str]:
    return scaled_overrides(PRESETS, list(given), parse_topology(base), parse_topology(to))


def test_sixteen_to_a_thousand_chips_and_several_slices_by_default():
    assert default_topologies(parse_topology("v5p-128")) == [
        "v5p-32", "v5p-64", "v5p-128", "v5p-256", "v5p-512", "v5p-1024", "v5p-2048",
        "2xv5p-128", "4xv5p-128",
    ]  # fmt: skip
    # There is no v5e slice of more than 256 chips.
    assert default_topologies(parse_topology("v5e-64"))[-3:] == ["v5e-256", "2xv5e-64", "4xv5e-64"]


def test_the_batch_grows_with_the_chips_and_replica_with_the_slices():
    assert overrides("data.batch_size=32", to="v5e-64") == ["data.batch_size=128"]
    assert overrides("data.batch_size=32", to="2xv5e-16") == [
        "data.batch_size=64",
        "parallel.replica=2",
    ]


def test_a_mesh_without_an_open_axis_grows_along_replica():
    fixed = ("data.batch_size=32", "parallel.replica=2", "parallel.fsdp=8")
    assert overrides(*fixed, to="v5e-64") == ["data.batch_size=128", "parallel.replica=-1"]


def test_a_batch_that_does_not_divide_and_no_batch_are_refused():
    with pytest.raises(ConfigError, match="10 sequences on 16 chips are no whole number on 4"):
        overrides("data.batch_size=10", to="v5e-4")
    with pytest.raises(ConfigError, match="weak scaling needs the number of sequences"):
        overrides(to="v5e-64")


@pytest.mark.slow
def test_a_series_by_arithmetic_is_a_table_with_what_bends_it():
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "tools/plan_scaling.py"), *PRESETS, "data.batch_size=64"),
            *("train.duration=1000 steps", "optimizer.learning_rate=3e-4", "--no-compile"),
            *("--base", "v5e-16", "--topologies", "v5e-16", "v5e-64", "2xv5e-64"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows[1:]] == ["v5e-16", "v5e-64", "2 × v5e-64"]
    assert done.stdout.count("\n- ") == 2
