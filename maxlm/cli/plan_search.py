"""`maxlm plan --search`: progress while it compiles, the table at its end, the winning config as a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from maxlm.cli.places import check_place

if TYPE_CHECKING:
    from maxlm.config.schema import RunConfig
    from maxlm.plan.search.search import SearchResult, Status
    from maxlm.plan.topology import Topology


def run_search(
    config: RunConfig,
    topology: Topology,
    *,
    presets: Sequence[str],
    overrides: Sequence[str],
    output: str | None = None,
    store: str | None = None,
    vocab_size: int | None = None,
    prices: str | None = None,
    compile: bool = True,
    budget_minutes: float,
    workers: int | None = None,
    table: TextIO | None = None,
) -> SearchResult:
    """Search, print, and write the winner.

    Args:
        config: as loaded from `presets` and `overrides`.
        topology: where.
        presets: names of the configs.
        overrides: `key=value`.
        output: file of the winning config; None: `NAME-TOPOLOGY.yaml` here.
        store: folder of compiled programs; None: the user's cache.
        vocab_size: where neither config nor token store tells.
        prices: file of prices, as in `make_plan`.
        compile: False: by arithmetic also on TPUs.
        budget_minutes: by which it ends; what would not end by then is not begun.
        workers: compiles at once; None: one for each core.
        table: where the layouts are printed; None: standard output.

    Raises:
        ConfigError: no layout divides or fits, there is no compiler, or the output would be lost or
            would replace what no search has written.
    """
    from maxlm import storage
    from maxlm.plan.search.layouts import search_layouts
    from maxlm.plan.search.report import search_table, winning_yaml

    where = topology.name.replace(" × ", "x")
    path = output or f"{config.name}-{where.replace(':', '-')}.yaml"
    _check_replaced(path)
    check_place(path)
    progress = _Progress()
    print("ranking layouts by arithmetic", file=sys.stderr, flush=True)
    try:
        result = search_layouts(
            config,
            topology,
            name=" ".join([*presets, *overrides]),
            store=store,
            vocab_size=vocab_size,
            prices=prices,
            compile=compile,
            budget_minutes=budget_minutes,
            workers=workers,
            progress=progress,
        )
    except KeyboardInterrupt:
        progress.end()
        print("interrupted; the same command goes on with what is compiled", file=sys.stderr)
        raise
    progress.end()
    print(search_table(result), file=table)
    if result.best is None:
        print("none of these layouts fits; nothing is written", file=table)
        return result
    command = " ".join(["maxlm plan", *presets, *overrides, "--topology", where, "--search"])
    if not compile:
        command += " --no-compile"
    storage.write_text(path, winning_yaml(result, presets, overrides, command=command))
    print(f"wrote {path}: maxlm train {path}", file=table)
    return result


def _check_replaced(path: str) -> None:
    """Raise ConfigError where a file would be replaced that no search has written."""
    from maxlm import storage
    from maxlm.errors import ConfigError
    from maxlm.plan.search.report import FIRST_WORDS

    text = storage.read_text(path) if storage.exists(path) else ""
    if text.strip() and not text.startswith(f"# {FIRST_WORDS}"):
        raise ConfigError(f"{path} is there and was not written by a search; give another --output")


class _Progress:
    """One line on standard error, rewritten on a terminal and else told twice a minute."""

    def __init__(self) -> None:
        self._told = 0.0

    def __call__(self, status: Status) -> None:
        from maxlm.plan.search.report import status_line

        line = status_line(status)
        if sys.stderr.isatty():
            print(f"\r\x1b[K{line[:158]}", end="", file=sys.stderr, flush=True)
        elif status.elapsed - self._told >= 30:
            self._told = status.elapsed
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line."""
        if sys.stderr.isatty():
            print(file=sys.stderr)
