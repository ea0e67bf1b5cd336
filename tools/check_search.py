"""The search of layouts held against compiling every one of them, for one small job.

    python tools/check_search.py --topology v5e-8 --store /tmp/plans

First the search as `maxlm plan --search` does it, then every layout of the same space. Prints all of them by
compiled time with what arithmetic said, the search's choice, how far it is from the best, and how many
layouts it compiled. Compiled programs are kept in the store, so it goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import math
import sys

from maxlm.config.choices import Rematerialization
from maxlm.config.load import load_config
from maxlm.errors import MaxLMError
from maxlm.plan.plan import make_plan
from maxlm.plan.result import Plan
from maxlm.plan.search.candidates import Candidate, Space, find_candidates
from maxlm.plan.search.layouts import search_layouts
from maxlm.plan.search.report import search_table, status_line
from maxlm.plan.search.search import Status
from maxlm.plan.topology import Topology, parse_topology

# Four layers of width 512, which a compile takes half a minute for.
JOB = [
    "model.num_layers=4",
    "model.embed_dim=512",
    "model.num_heads=4",
    "model.head_dim=128",
    "model.mlp_dim=2048",
    "model.vocab_size=8192",
    "data.length=512",
    "data.batch_size=64",
    "train.duration=1000 steps",
    "optimizer.learning_rate=3e-4",
]
SPACE = Space(
    policies=(Rematerialization.MATMULS, Rematerialization.FULL),
    accumulations=(1,),
    axes=("replica", "fsdp", "tensor"),
)


def main() -> int:
    arguments = _arguments()
    topology = parse_topology(arguments.topology)
    config = load_config([arguments.hardware], JOB)
    candidates = find_candidates(config, topology, SPACE)
    result = search_layouts(
        config, topology, space=SPACE, store=arguments.store, progress=_tell, workers=2
    )
    print("\n\nthe search:\n" + search_table(result))
    searched = {row.candidate.label for row in result.rows}
    assert result.best and result.best.seconds
    rows = []
    for number, candidate in enumerate(candidates.fitting, 1):
        print(
            f"\r{number} of {len(candidates.fitting)}: {candidate.label:60}",
            end="",
            file=sys.stderr,
        )
        plan = _compiled(candidate, topology, arguments.store)
        if plan and plan.time and plan.memory and plan.memory.fits:
            rows.append((plan.time.total, candidate, plan))
    rows.sort(key=lambda row: row[0])
    print(f"\n\nall {len(rows)} layouts:\n")
    _print_table(rows, searched)
    best = rows[0][0]
    print(
        f"\nthe search's choice: {result.best.candidate.label}, {result.best.seconds:.6f} s; the best: "
        f"{rows[0][1].label}, {best:.6f} s: {result.best.seconds / best - 1:.2%} slower; "
        f"{len(searched)} of {len(rows)} layouts compiled"
    )
    return 0 if result.best.seconds <= 1.03 * best else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e-8", help="product name of a slice")
    parser.add_argument("--hardware", default="hardware/v5e", help="preset of its chip")
    parser.add_argument("--store", help="folder of compiled programs")
    return parser.parse_args()


def _compiled(candidate: Candidate, topology: Topology, store: str | None) -> Plan | None:
    try:
        return make_plan(candidate.config, topology, store=store)
    except MaxLMError as error:
        print(f"\n{candidate.label}: {error}", file=sys.stderr)
        return None


def _print_table(rows: list[tuple[float, Candidate, Plan]], searched: set[str]) -> None:
    print("| layout | compiled, ms | arithmetic, ms | GiB | arithmetic, GiB | by the search |")
    print("|---|---|---|---|---|---|")
    for seconds, candidate, plan in rows:
        assert plan.memory and candidate.analytic.memory
        bytes_found, bytes_said = plan.memory.total, candidate.analytic.memory.total
        print(
            f"| {candidate.label} | {1000 * seconds:.2f} | {1000 * candidate.seconds:.2f} | "
            f"{bytes_found / 2**30:.2f} | {bytes_said / 2**30:.2f} | "
            f"{'compiled' if candidate.label in searched else ''} |"
        )
    ratios = [seconds / candidate.seconds for seconds, candidate, _ in rows]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    print(
        f"\ncompiled ÷ arithmetic: {mean:.2f} on average ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def _tell(status: Status) -> None:
    print("\r" + status_line(status)[:150].ljust(150), end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
