"""`maxlm report RUN [RUN …]`: writes a run's page."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, local or gs://")
    parser.add_argument(
        "--output", metavar="FILE", help="where to write the page (default: RUN/report.html)"
    )
    parser.description = (
        "Write a run's page: one HTML file with its curves, configuration, data and samples.\n"
        "It needs no network and no other file. Several runs are compared on one page. A run that\n"
        "is still going can be looked at too; write the page again to see it further on."
    )
    parser.epilog = (
        "examples:\n"
        "  maxlm report runs/quickstart\n"
        "  maxlm report runs/adamw runs/muon --output compared.html\n"
        "  maxlm report gs://bucket/runs/big --output big.html"
    )


def run(args: argparse.Namespace) -> int:
    """Write the page and say where it is."""
    from maxlm.evaluate.report.write import write_report

    path = write_report(args.runs, args.output)
    print(f"wrote {path}")
    return 0
