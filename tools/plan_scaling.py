"""Weak scaling by compile: one config from few chips to many, as many sequences on each chip.

    python tools/plan_scaling.py runs/llama3-8b-v5p-128 --base v5p-128
    python tools/plan_scaling.py runs/llama3-8b-v5p-128 --base v5p-128 --topologies v5p-32 v5p-2048
    python tools/plan_scaling.py models/gpt2-124m hardware/v5e data.batch_size=64 --base v5e-16 \
        --topologies v5e-16 v5e-64 2xv5e-64 --html scaling.html

`--base` is the topology to which the config's batch belongs; every other one gets as many rows a chip.
By default 16 to 1,024 chips of the base's kind, then the base as 2 and 4 slices. The mesh grows along
the axis that is -1 in the config, across slices along `parallel.replica`, which also grows where the
config fixes all axes; to grow fsdp instead, give `parallel.fsdp=-1`. Compiled programs are kept
(`--store`), so the same command again goes on where it was stopped. Prints a Markdown table, what bends
the curve, and on standard error what is going on. Exits with 1 when a topology could not be planned at
all.
"""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no device of this machine is needed

import argparse
import sys
import time

from maxlm.config.load import load_config
from maxlm.config.mesh_axes import MESH_AXES
from maxlm.errors import ConfigError, MaxLMError
from maxlm.plan.plan import make_plan
from maxlm.plan.report.page import write_page
from maxlm.plan.report.scaling import scaling_table, what_bends
from maxlm.plan.result import Plan
from maxlm.plan.topology import Topology, parse_topology

CHIPS = (16, 32, 64, 128, 256, 512, 1024)
SLICES = (2, 4)


def main() -> int:
    arguments = _arguments()
    base = parse_topology(arguments.base)
    names = arguments.topologies or default_topologies(base)
    presets = [a for a in arguments.config if "=" not in a]
    overrides = [a for a in arguments.config if "=" in a]
    plans: list[Plan] = []
    failed: list[str] = []
    for name in names:
        topology, began = parse_topology(name), time.monotonic()
        try:
            extra = scaled_overrides(presets, overrides, base, topology)
            config = load_config(presets, [*overrides, *extra])
            plan = make_plan(
                config,
                topology,
                name=" ".join([*arguments.config, *extra]),
                compile=not arguments.no_compile,
                store=arguments.store,
                vocab_size=arguments.vocab_size,
            )
        except MaxLMError as error:
            failed.append(f"{topology.name}: {error}")
            print(failed[-1], file=sys.stderr, flush=True)
            continue
        plans.append(plan)
        spent = time.monotonic() - began
        print(f"{topology.name}: planned in {spent:.0f} s", file=sys.stderr, flush=True)
    if plans:
        print(scaling_table(plans))
        print("".join(f"\n- {line}" for line in [*what_bends(plans), *failed]))
        if arguments.html:
            write_page(arguments.html, plans)
    return 1 if failed else 0


def default_topologies(base: Topology) -> list[str]:
    """16 to 1,024 chips, as far as one slice of the base's kind goes, then several of the base."""
    chip = base.chip
    per_chip = 2 if chip.torus_axes == 3 else 1  # product names count TensorCores there
    names = []
    for chips in CHIPS:
        name = f"{chip.name}-{chips * per_chip}" if chip.torus_axes else f"{chip.name}x{chips}"
        try:
            parse_topology(name)
        except ConfigError:
            continue
        names.append(name)
    if chip.torus_axes:
        one = base.name.replace(" ", "").split("×")[-1]
        names += [f"{slices}x{one}" for slices in SLICES]
    return names


def scaled_overrides(
    presets: list[str], overrides: list[str], base: Topology, topology: Topology
) -> list[str]:
    """What makes a config for `base` one for `topology`: its batch, and copies across slices.

    Raises:
        ConfigError: no batch is given, or it is no whole number of rows on the new topology.
    """
    config = load_config(presets, overrides)
    rows = config.data.batch_size
    if not isinstance(rows, int):
        raise ConfigError(
            f"data.batch_size is {rows!r}: weak scaling needs the number of sequences of {base.name}"
        )
    if rows * topology.num_chips % base.num_chips:
        raise ConfigError(
            f"{rows} sequences on {base.num_chips} chips are no whole number on "
            f"{topology.num_chips} ({topology.name}): give data.batch_size a multiple of "
            f"{base.num_chips}"
        )
    extra = [f"data.batch_size={rows * topology.num_chips // base.num_chips}"]
    sizes = {axis: getattr(config.parallel, axis) for axis in MESH_AXES}
    if -1 not in sizes.values():
        extra.append("parallel.replica=-1")
    elif topology.slices != base.slices and sizes["replica"] > 0:
        copies = max(1, sizes["replica"] // base.slices) * topology.slices
        extra.append(f"parallel.replica={copies}")
    return extra


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="+", metavar="CONFIG|KEY=VALUE")
    parser.add_argument("--base", required=True, metavar="TOPOLOGY", help="of the config's batch")
    parser.add_argument("--topologies", nargs="+", metavar="TOPOLOGY")
    parser.add_argument("--no-compile", action="store_true", help="by arithmetic, in seconds")
    parser.add_argument("--store", metavar="FOLDER", help="of compiled programs")
    parser.add_argument("--vocab-size", type=int, metavar="N")
    parser.add_argument("--html", metavar="FILE", help="also a page of all plans")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
