"""`maxlm checkpoints list|show|verify`: look at a run's checkpoints without loading its model."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maxlm.train.checkpoint_format import ArrayRecord
    from maxlm.train.checkpoints import Checkpoints

EPILOG = """\
RUN is a run's folder, local or gs://; RUN@STEP names one of its checkpoints, RUN alone the newest.

examples:
  maxlm checkpoints list runs/quickstart
  maxlm checkpoints show runs/quickstart@200       metadata and the table of arrays
  maxlm checkpoints show runs/quickstart --config  the config that it was trained with
  maxlm checkpoints verify runs/quickstart         recompute the newest one's checksums
  maxlm checkpoints verify gs://bucket/run --all   exits 2 and names the arrays when damaged

verify needs no accelerator and runs beside a training run.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|show|verify")
    text = argparse.RawDescriptionHelpFormatter
    listing = actions.add_parser(
        "list", help="steps, age, size, and whether each is complete", formatter_class=text
    )
    listing.add_argument("run", metavar="RUN", help="folder of a run")
    show = actions.add_parser(
        "show", help="metadata, arrays with shapes and checksums, totals", formatter_class=text
    )
    show.add_argument("run", metavar="RUN[@STEP]", help="a run, or one checkpoint of it")
    show.add_argument("--config", action="store_true", help="print only the resolved config (YAML)")
    verify = actions.add_parser(
        "verify", help="read everything and recompute every checksum", formatter_class=text
    )
    verify.add_argument("run", metavar="RUN[@STEP]", help="a run, or one checkpoint of it")
    verify.add_argument("--all", action="store_true", help="every complete checkpoint of the run")


def run(arguments: argparse.Namespace) -> int:
    """Run the chosen action; returns the exit code."""
    # Checkpoints are read on the host: leave the accelerator to whoever is training on it.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    action = {"list": _list, "show": _show, "verify": _verify}[arguments.action]
    return action(arguments)


def _list(arguments: argparse.Namespace) -> int:
    from maxlm import storage
    from maxlm.train import checkpoint_format as layout
    from maxlm.train.run_folder import require_run

    folder = require_run(arguments.run)[0].checkpoints
    listing = layout.scan(folder)
    rows = [("step", "saved", "size", "format", "state")]
    for step, name in listing.complete.items():
        try:
            found = layout.read_description(storage.join(folder, name))
        except layout.DamagedError as error:
            rows.append((str(step), "", "", "", f"damaged: {error.problems[0]}"))
            continue
        except layout.CheckpointError as error:
            rows.append((str(step), "", "", "", str(error)))
            continue
        version = str(found.format_version)
        rows.append((str(step), age(found.saved_at), size(found.bytes), version, "complete"))
    for name in listing.superseded:
        rows.append((name, "", "", "", "superseded; removed at the next save"))
    for name in listing.half_written:
        rows.append((name.split(".")[0], "", "", "", "half-written; removed at the next save"))
    print(folder)
    print(table(rows) if len(rows) > 1 else "no checkpoints")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    import yaml

    checkpoints, (step,) = _open(arguments.run)
    found = checkpoints.description(step)
    metadata = dict(found.metadata)
    config = metadata.pop("config", None)
    if arguments.config:
        print(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), end="")
        return 0
    print(checkpoints.path(step))
    print(f"step {found.step}, format {found.format_version}, saved {age(found.saved_at)}")
    print()
    print(yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True))
    print(array_table(found.arrays))
    for name, record in found.files.items():
        print(f"file {name}: {size(record.bytes)}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    import jax

    # Large arrays are summed up by a program: on the CPU, as a training may hold the accelerator.
    jax.config.update("jax_platforms", "cpu")
    checkpoints, steps = _open(arguments.run, every=arguments.all)
    damaged = 0
    for number in steps:
        report = checkpoints.verify(number)
        if report.good:
            print(
                f"step {number}: good, {report.arrays} arrays, {size(report.bytes)}, "
                f"{report.seconds:.1f} s"
            )
            continue
        damaged += 1
        print(f"step {number}: DAMAGED: {report.path}")
        for problem in report.problems:
            print(f"  - {problem}")
    return 2 if damaged else 0


def _open(reference: str, every: bool = False) -> tuple[Checkpoints, list[int]]:
    """A run's checkpoints and the steps meant: the one named, else the newest, else every one."""
    from maxlm.errors import CheckpointError
    from maxlm.train.checkpoints import Checkpoints
    from maxlm.train.run_folder import require_run

    found, step = require_run(reference)
    checkpoints = Checkpoints(found.checkpoints)
    if step is not None:
        checkpoints.path(step)  # raises, and says which there are
        return checkpoints, [step]
    steps = checkpoints.steps()
    if not steps:
        raise CheckpointError(f"{found.checkpoints}: there is no complete checkpoint")
    return checkpoints, steps if every else steps[-1:]


def array_table(arrays: dict[str, ArrayRecord]) -> str:
    """The arrays of a checkpoint as aligned lines, with the sum of each group of names."""
    rows = [("array", "shape", "dtype", "size", "checksum")]
    groups: dict[str, list[ArrayRecord]] = {}
    for name, record in sorted(arrays.items()):
        shape = "×".join(map(str, record.shape)) or "scalar"
        rows.append((name, shape, record.dtype, size(record.bytes), record.checksum))
        groups.setdefault(name.split(".")[0], []).append(record)
    groups["total"] = list(arrays.values())
    for group, records in groups.items():
        values = sum(record.elements for record in records)
        total = sum(record.bytes for record in records)
        rows.append((group, f"{values:,} values", "", size(total), ""))
    return table(rows)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as left-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def size(num_bytes: int) -> str:
    """Bytes for the eye: `12.3 MB` (powers of 1000)."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def age(unix_seconds: float) -> str:
    """How long ago, for the eye: `5 minutes ago`."""
    seconds = max(0.0, time.time() - unix_seconds)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return f"{int(seconds)} seconds ago"
