"""Seconds of a Pallas kernel by the compiler's own schedule: it is compiled alone, without a TPU.

In: a `KernelCall`, which carries the kernel's code, and the chip; out: seconds of one call. A TPU issues a
bundle of instructions a cycle, and the schedule of a kernel is the straight line of one block of its grid:
seconds = bundles × blocks that the mask leaves ÷ (TensorCores × clock). All predicated branches count,
waiting for memory does not. Where the grid depends on data, only a grouped matmul is scheduled
(`grouped_kernels.py`). A child process compiles (`kernel_worker.py`, about ten seconds), because the
compiler reads where to write its schedules when it starts; the result is kept in the user's cache, by the
kernel's code, its arrays, the chip and libtpu's version.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maxlm.errors import PlanError, StorageError
from maxlm.parallel.chips import Chip
from maxlm.plan.reading import grouped_kernels
from maxlm.plan.reading.grouped_kernels import grouped_seconds, is_grouped
from maxlm.plan.reading.kernels import KernelCall, KernelTime, executed_share, seconds_by_rule
from maxlm.storage import read_text, write_text

HOW = "their own schedules (bundles × blocks that the mask leaves ÷ TensorCores)"
TIMEOUT_SECONDS = 600
_KNOWN_DTYPES = ("bf16", "f32", "f16", "s32", "s16", "s8", "u32", "u16", "u8", "pred")


@dataclass(frozen=True)
class Schedule:
    """What the compiler makes of a kernel.

    Attributes:
        bundles: of one block of the grid, the start and the end of the kernel included.
        grid: blocks along each dim; below 0 where that depends on data.
        windows: what a block sees of each operand and result.
    """

    bundles: int
    grid: tuple[int, ...]
    windows: tuple[tuple[int, ...], ...] = ()


def scheduled_seconds(call: KernelCall, chip: Chip) -> KernelTime:
    """Seconds of one call; by the rule of `kernels.py` where the kernel cannot be scheduled alone.

    Args:
        call: of the kernel.
        chip: that runs it.
    """
    try:
        seconds = seconds_by_schedule(schedule_kernel(call, chip), call, chip)
    except PlanError as error:
        by_rule = seconds_by_rule(call, chip)
        return KernelTime(by_rule.seconds, f"{by_rule.how} ({error})")
    how = grouped_kernels.HOW if is_grouped(call) else HOW
    return KernelTime(seconds, how)


def seconds_by_schedule(schedule: Schedule, call: KernelCall, chip: Chip) -> float:
    """Bundles × executed blocks over the chip's TensorCores and clock.

    Raises:
        PlanError: of a grouped matmul, see `grouped_kernels.py`.
    """
    assert chip.clock
    if is_grouped(call):
        return grouped_seconds(schedule.bundles, schedule.grid, schedule.windows, call, chip)
    blocks = math.prod(schedule.grid) * executed_share(call)
    return schedule.bundles * blocks / (chip.cores * chip.clock)


def schedule_kernel(call: KernelCall, chip: Chip, *, folder: str | None = None) -> Schedule:
    """Compile a kernel alone, or take what an earlier compile left.

    Args:
        call: of the kernel.
        chip: that it is compiled for.
        folder: where schedules are kept; None: `maxlm/kernels` in the user's cache.

    Raises:
        PlanError: its grid depends on data in no way that is known, or the compiler refuses it; what is said stands after
            "by their FLOPs …" in a plan's notes.
    """
    odd = next((a.dtype for a in call.operands if a.dtype not in _KNOWN_DTYPES), None)
    if odd or not call.operands:
        raise PlanError(f"not scheduled: an operand of type {odd}")
    job = _job(call, chip)
    name = hashlib.sha256(json.dumps([job, _libtpu()], sort_keys=True).encode()).hexdigest()[:32]
    path = os.path.join(folder or default_folder(), f"{name}.json")
    try:
        kept = json.loads(read_text(path))
        return _schedule(kept["bundles"], kept)
    except (StorageError, ValueError, KeyError, TypeError):
        pass  # not there, or damaged: compile anew
    schedule = _compiled(job, call.name)
    kept = {"kernel": call.name, **dataclasses.asdict(schedule)}
    # A cache that cannot be written costs time, and nothing else.
    with contextlib.suppress(StorageError):
        write_text(path, json.dumps(kept))
    return schedule


def default_folder() -> str:
    """The folder of schedules: `maxlm/kernels` in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(cache, "maxlm", "kernels")


def read_bundles(folder: str | os.PathLike[str]) -> int:
    """Bundles of the kernel among the schedules that the compiler wrote into a folder.

    The longest one is the kernel's; the others start and end the program.

    Raises:
        PlanError: there is none.
    """
    found = [
        int(match.group(1))
        for path in Path(folder).glob("*schedule-analysis_final_bundles.txt")
        if (match := re.search(r"total scheduled bundles:\s*(\d+)", path.read_text()))
    ]
    if not found:
        raise PlanError("not scheduled: the compiler wrote no schedule")
    return max(found)


def _job(call: KernelCall, chip: Chip) -> dict[str, object]:
    """What the child compiles: without what says only where the kernel stood in its program."""
    try:
        config = json.loads(call.config)["custom_call_config"]
    except (ValueError, KeyError) as error:
        raise PlanError("not scheduled: the program does not carry the kernel's code") from error
    config.pop("debug_locations", None)
    return {
        "config": config,
        "operands": [(a.dtype, a.dims) for a in call.operands],
        "results": [(a.dtype, a.dims) for a in call.results],
        "chip": chip.name,
        "grouped": is_grouped(call),
    }


def _compiled(job: dict[str, object], name: str) -> Schedule:
    with tempfile.TemporaryDirectory(prefix="maxlm-kernel-") as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        flags = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {flags}".strip()
        alone = {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1"}
        environment = os.environ | alone | {"JAX_PLATFORMS": "cpu", "LIBTPU_INIT_ARGS": flags}
        # The child's own package: it may have been started from a folder that is no package's.
        root = str(Path(__file__).parents[3])
        environment["PYTHONPATH"] = os.pathsep.join(
            [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        try:
            child = subprocess.run(
                [sys.executable, "-m", "maxlm.plan.reading.kernel_worker"],
                input=json.dumps(job),
                env=environment,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise PlanError(
                f"{name} not scheduled: no schedule within {TIMEOUT_SECONDS} s"
            ) from error
        said = _last_json(child.stdout)
        if said is None or child.returncode:
            lines = child.stderr.strip().splitlines() or ["it said nothing"]
            raise PlanError(
                f"{name} not scheduled: its compile ended with {child.returncode}: {lines[-1][:200]}"
            )
        if "error" in said:
            raise PlanError(f"{name} not scheduled: {said['error']}")
        return _schedule(read_bundles(folder), said)


def _schedule(bundles: int, found: dict[str, Any]) -> Schedule:
    windows = tuple(tuple(int(n) for n in window) for window in found["windows"])
    return Schedule(int(bundles), tuple(int(n) for n in found["grid"]), windows)


def _last_json(text: str) -> dict[str, Any] | None:
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            return dict(json.loads(line))
    return None


def _libtpu() -> str:
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError as error:
        raise PlanError("not scheduled: no libtpu is installed") from error
