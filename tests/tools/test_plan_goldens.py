"""What a golden plan compares, and the small runs for pods against their files."""

import copy
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from plan_goldens import FOLDER, compare, golden, look, path_of

from maxlm.plan.pods import pods
from tests.cases import campaign

BEFORE = {
    "mesh": {"fsdp": 4},
    "step_seconds": 2.0,
    "memory_bytes": {"all": 1000, "host": 0},
    "collectives": {"all-gather over fsdp, blocking": {"runs": 4, "wire_bytes": 100}},
}


def changed(**change):
    now = copy.deepcopy(BEFORE)
    now.update(change)
    return now


def test_the_same_plan_has_no_difference():
    assert compare(BEFORE, changed()) == ([], False)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"step_seconds": 2.1}, "step_seconds: 2.0 → 2.1"),
        ({"memory_bytes": {"all": 1020, "host": 0}}, "memory_bytes, all"),
        ({"memory_bytes": {"all": 1000, "host": 5}}, "memory_bytes, host"),
        ({"collectives": BEFORE["collectives"] | {"all-reduce": {"runs": 1}}}, "all-reduce"),
        ({"mesh": {"fsdp": 2}}, "mesh"),
    ],
)
def test_what_grows_is_worse_and_named(change, named):
    lines, worse = compare(BEFORE, changed(**change))
    assert worse
    assert named in lines[0]


def test_what_shrinks_is_told_and_not_worse():
    lines, worse = compare(BEFORE, changed(step_seconds=1.5))
    assert (lines, worse) == (["step_seconds: 2.0 → 1.5 (-25.0%)"], False)


def test_a_version_without_a_file_is_a_difference():
    assert compare(None, BEFORE)[1]


def test_every_run_for_a_pod_has_a_golden_file():
    assert {path_of(name) for name in pods()} == set(FOLDER.glob("*.json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["runs/gpt2-124m-v5e-8", campaign("runs/qwen3-0.6b-v5e-16")],
)
def test_a_small_run_compiles_to_what_its_golden_file_says(name, tmp_path):
    pytest.importorskip("libtpu")
    version, found = look(name, str(tmp_path))
    before = golden(name, version)
    if before is None:
        pytest.skip(f"no golden file for {version}")
    assert compare(before, found)[0] == []


@pytest.mark.parametrize("name", [n for n, t in pods().items() if t.chip.platform == "gpu"])
def test_a_run_for_gpus_is_planned_as_its_golden_file_says(name):
    version, found = look(name)
    assert compare(golden(name, version), found) == ([], False)
