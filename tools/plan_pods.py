"""The plans of the shipped runs for pods, as docs/pods.md shows them.

    python tools/plan_pods.py --write docs/pods.md
    python tools/plan_pods.py runs/llama3-8b-v5p-128

Each run is planned on the topology in its name: compiled for TPUs, by arithmetic for GPUs. Compiled programs
are kept (--store), so the same command again goes on where it was stopped. `--write` puts the table between
the marks of a Markdown file, `--html` writes all plans as one page.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no device of this machine is needed

from maxlm.config.load import load_config
from maxlm.errors import MaxLMError
from maxlm.plan.plan import make_plan
from maxlm.plan.pods import pods
from maxlm.plan.report.page import write_page
from maxlm.plan.result import Plan

BEGIN, END = "<!-- plans -->", "<!-- end of plans -->"
HEADS = (
    "run", "mesh", "step, s", "MFU", "tokens/s", "GiB of", "on the wire, GB: blocking + overlapped",
    "days", "dollars", "compile, s",
)  # fmt: skip


def main() -> int:
    """Plan, print, and write where asked; 1 when a run could not be planned."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("names", nargs="*", help="runs for pods; none: all of them")
    parser.add_argument("--write", type=Path, metavar="FILE", help="Markdown with the two marks")
    parser.add_argument("--html", metavar="FILE", help="a page with all plans")
    parser.add_argument("--store", help="folder of compiled programs (default: the user's cache)")
    arguments = parser.parse_args()
    plans, failed = [], 0
    for name in arguments.names or sorted(pods()):
        try:
            plan = make_plan(
                load_config([name], []), pods()[name], name=name, store=arguments.store
            )
        except MaxLMError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed += 1
            continue
        print(row(plan), flush=True)
        plans.append(plan)
    if arguments.write:
        write(arguments.write, table(plans))
    if arguments.html:
        write_page(arguments.html, plans)
    return int(failed > 0)


def table(plans: list[Plan]) -> str:
    """Markdown, a row for each plan."""
    head = ["| " + " | ".join(HEADS) + " |", "|---" * len(HEADS) + "|"]
    return "\n".join([*head, *(row(plan) for plan in plans)])


def row(plan: Plan) -> str:
    """A plan as a row."""
    memory, time, cost = plan.memory, plan.time, plan.cost
    wire = [
        sum(c.wire_bytes for c in plan.collectives if c.is_overlapped is overlapped) / 1e9
        for overlapped in (False, True)
    ]
    how = "arithmetic" if plan.method == "analytic" else f"{plan.compile_seconds or 0:.0f}"
    cells = [
        f"`{plan.config}`",
        " × ".join(f"{axis} {size}" for axis, size in plan.mesh.items()),
        f"{time.total:.3f}" if time else "does not fit",
        f"{plan.mfu:.1%}" if plan.mfu else "",
        f"{plan.tokens_per_second:,.0f}" if plan.tokens_per_second else "",
        f"{memory.total / 2**30:.1f} of {memory.capacity / 2**30:.1f}" if memory else "",
        f"{wire[0]:.1f} + {wire[1]:.1f}",
        f"{cost.days:.1f}" if cost.days else "",
        f"{cost.dollars:,.0f}" if cost.dollars else "no price",
        how,
    ]
    return "| " + " | ".join(cells) + " |"


def write(path: Path, text: str) -> None:
    """Put a table between the marks of a file."""
    before, found, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise SystemExit(f"{path} has no {BEGIN} and {END} to write between")
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
