"""What the TPU compiler makes of the shipped runs for pods, against files that were reviewed.

    python tools/plan_goldens.py                                     # check all of them (make campaign)
    python tools/plan_goldens.py runs/gpt2-124m-v5e-8                 # check one
    python tools/plan_goldens.py --write runs/gpt2-124m-v5e-8         # after a change that is meant
    JAX_OPTIMIZATION_LEVEL=O0 python tools/plan_goldens.py …          # as the suite does, four times as fast

A golden file (tests/plan/goldens/NAME.json) holds by version of libtpu, and of the compiler's effort where
that is not the usual one: the mesh, bytes of memory by kind,
seconds of the step, and of every kind of collective its runs and its bytes on the wire. Whatever grows by
more than a hundredth, or a collective that was not there, is a difference, and the exit status 1: a change that
makes a pod slower is seen. What shrinks is told, so that the file follows. Where parameters lie has golden
files of its own (python -m tests.parallel.shardings). Runs for GPUs are planned by arithmetic.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no device of this machine is needed

from maxlm.config.load import load_config
from maxlm.plan.plan import make_plan
from maxlm.plan.pods import pods
from maxlm.plan.report.grouped import group_collectives
from maxlm.plan.result import Plan

FOLDER = Path(__file__).resolve().parent.parent / "tests/plan/goldens"
TOLERANCE = 0.01
ARITHMETIC = "arithmetic"


def main() -> int:
    """Check or write; 1 when something is worse or has no file."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("names", nargs="*", help="runs for pods; none: all of them")
    parser.add_argument("--write", action="store_true", help="write what is found into the files")
    parser.add_argument("--store", help="folder of compiled programs (default: the user's cache)")
    arguments = parser.parse_args()
    worse = False
    for name in arguments.names or sorted(pods()):
        version, found = look(name, arguments.store)
        if arguments.write:
            write(name, version, found)
            print(f"{name}: wrote {path_of(name)} for {version}", flush=True)
            continue
        lines, is_worse = compare(golden(name, version), found)
        worse |= is_worse
        print("\n  ".join([f"{name} ({version}): {'differs' if lines else 'as before'}", *lines]))
    return int(worse)


def look(name: str, store: str | None = None) -> tuple[str, dict[str, Any]]:
    """The version that planned a shipped run, and what is compared."""
    plan = make_plan(load_config([name], []), pods()[name], name=name, store=store)
    version = plan.versions.get("libtpu") if plan.method == "compiled" else None
    level = os.environ.get("JAX_OPTIMIZATION_LEVEL")
    effort = f", {level}" if level else ""
    return f"libtpu {version}{effort}" if version else ARITHMETIC, record(plan)


def record(plan: Plan) -> dict[str, Any]:
    """What a golden file holds of a plan."""
    assert plan.memory is not None
    memory = {
        "state": plan.memory.parameters + plan.memory.optimizer,
        "gradients and activations": plan.memory.gradients + plan.memory.activations,
        "all": plan.memory.total,
        "host": plan.memory.host,
    }
    collectives = {
        f"{group.kind} over {group.over}, {group.how}": {
            "runs": group.times,
            "wire_bytes": round(group.wire_bytes),
        }
        for group in group_collectives(plan.collectives)
    }
    return {
        "mesh": plan.mesh,
        "step_seconds": round(plan.time.total, 5) if plan.time else None,
        "memory_bytes": memory,
        "collectives": dict(sorted(collectives.items())),
    }


def path_of(name: str) -> Path:
    """The golden file of a run."""
    return FOLDER / f"{name.removeprefix('runs/')}.json"


def golden(name: str, version: str) -> dict[str, Any] | None:
    """What the file says for a version; None: nothing."""
    path = path_of(name)
    return json.loads(path.read_text()).get(version) if path.exists() else None


def write(name: str, version: str, found: dict[str, Any]) -> None:
    """Put a record into the file, beside those of other versions."""
    path = path_of(name)
    FOLDER.mkdir(parents=True, exist_ok=True)
    kept = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(dict(sorted((kept | {version: found}).items())), indent=1) + "\n")


def compare(before: dict[str, Any] | None, now: dict[str, Any]) -> tuple[list[str], bool]:
    """Differences in words, and whether one of them makes the run worse."""
    if before is None:
        return ["no golden file for this version: --write makes one"], True
    if before["mesh"] != now["mesh"]:
        return [f"mesh {before['mesh']} → {now['mesh']}"], True
    lines, worse = [], False
    for path, then, value in _numbers(before, now):
        if then == value:
            continue
        change = (value - then) / then if then else float("inf")
        grew = change > TOLERANCE
        if grew or change < -TOLERANCE:
            lines.append(f"{path}: {then:,} → {value:,} ({change:+.1%})")
            worse |= grew
    return lines, worse


def _numbers(before: Any, now: Any, path: str = "") -> list[tuple[str, float, float]]:
    """Numbers of both by where they stand; 0 where one has none."""
    if not isinstance(before, dict) and not isinstance(now, dict):
        return [(path, before or 0, now or 0)]
    before, now = before or {}, now or {}
    found = []
    for key in dict.fromkeys([*before, *now]):
        if key != "mesh":
            inner = f"{path}, {key}" if path else key
            found += _numbers(before.get(key), now.get(key), inner)
    return found


if __name__ == "__main__":
    sys.exit(main())
