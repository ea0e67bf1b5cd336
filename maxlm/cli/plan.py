"""`maxlm plan`: does a run fit, how long is a step, what does it cost, before anything is rented."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from maxlm.cli.numbers import positive, whole
from maxlm.cli.places import check_place

if TYPE_CHECKING:
    from maxlm.config.schema import RunConfig
    from maxlm.plan.result import Plan
    from maxlm.plan.topology import Topology

EPILOG = """\
The step that `maxlm train` would run is compiled ahead of time by the real TPU compiler for a slice that
need not exist, and its program is read: memory by kind, the step's time by the compiler's own schedule,
every collective, the costliest operations with their line in the model. No TPU and no account is needed;
an 8B model takes one to several minutes and 2 to 4 GiB, once: programs are kept (--store) and found again.

topologies:
  v5p-128  v4-64  tpu7x-128       TensorCores, two a chip        2xv5p-128  or  --slices 2
  v5e-64   v5litepod-64  v6e-256  chips                          v5p:4x4x12     a shape, in chips
  h100x64  h200x8  b200x16        GPUs, by arithmetic only

examples:
  maxlm plan runs/llama3-8b-v5p-128 --topology v5p-128
  maxlm plan models/llama2-7b hardware/v5e data.batch_size=64 --topology v5e-64 --explain
  maxlm plan runs/llama3-8b-v5p-128 --topology 2xv5p-128 parallel.replica=8 --html plan.html
  maxlm plan runs/llama3-8b-v5p-128 --topology v5p-128 --search
  maxlm plan models/gpt2-124m hardware/h100 data.batch_size=512 --topology h100x8 --json -

exit status: 0 it fits; 2 it does not fit, or something given is wrong; 1 the compiler failed.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    parser.add_argument("arguments", nargs="+", metavar="CONFIG|KEY=VALUE", help="as for `train`")
    parser.add_argument(
        "--topology", required=True, metavar="NAME", help="such as v5p-128; see below"
    )
    parser.add_argument(
        "--slices", type=whole, metavar="N", help="how many such slices (default: 1)"
    )
    parser.add_argument(
        "--explain", action="store_true", help="in words: what bounds the step, what next"
    )
    parser.add_argument(
        "--search", action="store_true", help="find the best layout; writes its config"
    )
    parser.add_argument("--no-compile", action="store_true", help="by arithmetic, in a second")
    search = parser.add_argument_group("--search")
    search.add_argument(
        "--minutes", type=positive, default=30, metavar="N", help="then it ends (30)"
    )
    search.add_argument("--workers", type=whole, metavar="N", help="compiles at once (one a core)")
    search.add_argument("--output", metavar="FILE", help="of the best config (NAME-TOPOLOGY.yaml)")
    out = parser.add_argument_group(
        "where the plan (of --search: the best one) goes (default: a table here)"
    )
    out.add_argument("--json", metavar="FILE", help="write it as JSON; - is standard output")
    out.add_argument("--html", metavar="FILE", help="write it as a page")
    given = parser.add_argument_group("what it rests on")
    given.add_argument(
        "--prices", metavar="FILE", help="YAML like configs/prices.yaml; its entries win"
    )
    given.add_argument(
        "--store", metavar="FOLDER", help="of compiled programs (default: the user's cache)"
    )
    given.add_argument(
        "--vocab-size",
        type=whole,
        metavar="N",
        help="where neither config nor token store tells it",
    )


def run(arguments: argparse.Namespace) -> int:
    """Plan and report."""
    import os

    # A plan needs no device of this machine, and shall not take one.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from maxlm.config.load import load_config
    from maxlm.errors import ConfigError
    from maxlm.plan.topology import parse_topology

    _check_places(arguments)
    topology = parse_topology(arguments.topology, arguments.slices)
    names = [a for a in arguments.arguments if "=" not in a]
    if not names:
        raise ConfigError("name a config to plan: a preset (`maxlm config list`) or a YAML file")
    overrides = [a for a in arguments.arguments if "=" in a]
    config = load_config(names, overrides)
    name = " ".join([*names, *overrides])
    if arguments.search:
        from maxlm.cli.plan_search import run_search

        result = run_search(
            config,
            topology,
            presets=names,
            overrides=overrides,
            output=arguments.output,
            store=arguments.store,
            vocab_size=arguments.vocab_size,
            prices=arguments.prices,
            compile=not arguments.no_compile,
            budget_minutes=arguments.minutes,
            workers=arguments.workers,
            table=sys.stderr if arguments.json == "-" else sys.stdout,
        )
        if result.best is None or result.best.compiled is None:
            if arguments.json or arguments.html:
                print("no plan is written: no layout fits", file=sys.stderr)
            return 2
        if arguments.json or arguments.html or arguments.explain:
            _report(result.best.compiled, topology, arguments)
        return 0
    plan = _plan(config, topology, name, arguments)
    _report(plan, topology, arguments)
    fits = plan.memory is not None and plan.memory.fits
    return 0 if fits else 2


def _check_places(arguments: argparse.Namespace) -> None:
    """Raise ConfigError where two outputs would be one file, or one has no place."""
    from maxlm.errors import ConfigError

    output = arguments.output if arguments.search else None
    files = [path for path in (output, arguments.json, arguments.html) if path]
    if len(set(files)) < len(files) or "-" in (output, arguments.html):
        raise ConfigError(
            "--json, --html and --output need a file each; only --json writes to standard output, as -"
        )
    for path in (arguments.json, arguments.html):
        if path and path != "-":
            check_place(path)


def _plan(config: RunConfig, topology: Topology, name: str, arguments: argparse.Namespace) -> Plan:
    from maxlm.plan.plan import make_plan

    with _Progress(topology.name) as progress:
        return make_plan(
            config,
            topology,
            name=name,
            compile=not arguments.no_compile,
            store=arguments.store,
            vocab_size=arguments.vocab_size,
            prices=arguments.prices,
            progress=progress,
        )


def _report(plan: Plan, topology: Topology, arguments: argparse.Namespace) -> None:
    from maxlm.plan.report.as_json import plan_json
    from maxlm.plan.report.explain import explain
    from maxlm.plan.report.page import write_page
    from maxlm.plan.report.terminal import print_plan

    told = explain(plan, topology.chip)
    if arguments.html:
        write_page(arguments.html, [plan], [told])
        print(f"wrote {arguments.html}", file=sys.stderr)
    if arguments.json and arguments.json != "-":
        _write(arguments.json, plan_json(plan) + "\n")
    if arguments.json == "-":
        print(plan_json(plan))
        return
    print_plan(plan)
    if arguments.explain:
        print("\n" + "\n".join(f"- {sentence}" for sentence in told))


def _write(path: str, text: str) -> None:
    from maxlm import storage

    storage.write_text(path, text)
    print(f"wrote {path}", file=sys.stderr)


class _Progress:
    """What is going on and for how long, on standard error: one line rewritten, or one a stage."""

    def __init__(self, topology: str):
        self.topology = topology
        self.stage = ""
        self.live = sys.stderr.isatty()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.live and self.stage:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def __call__(self, stage: str, seconds: float) -> None:
        line = f"{self.topology}: {stage}"
        if self.live:
            print(f"\r\x1b[K{line} … {seconds:.0f} s", end="", file=sys.stderr, flush=True)
        elif stage != self.stage:
            print(line, file=sys.stderr, flush=True)
        self.stage = stage
