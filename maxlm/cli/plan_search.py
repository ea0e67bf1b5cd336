"""`maxlm plan --search`: progress while it compiles, the table at its end, the winning config as a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

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
    budget_minutes: float,
    workers: int | None = None,
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
        budget_minutes: by which it ends; what would not end by then is not begun.
        workers: compiles at once; None: one for each core.

    Raises:
        ConfigError: no layout divides or fits, or there is no compiler.
    """
    from maxlm import storage
    from maxlm.plan.search.layouts import search_layouts
    from maxlm.plan.search.report import search_table, winning_yaml

    progress = _Progress()
    print("ranking layouts by arithmetic", file=sys.stderr, flush=True)
    try:
        result = search_layouts(
            config,
            topology,
            name=" ".join([*presets, *overrides]),
            store=store,
            vocab_size=vocab_size,
            budget_minutes=budget_minutes,
            workers=workers,
            progress=progress,
        )
    except KeyboardInterrupt:
        progress.end()
        print("interrupted; the same command goes on with what is compiled", file=sys.stderr)
        raise
    progress.end()
    print(search_table(result))
    if result.best is None:
        print("none of the layouts that were compiled fits; nothing is written")
        return result
    command = " ".join(
        ["maxlm plan", *presets, *overrides, "--topology", topology.name.replace(" × ", "x")]
    )
    path = output or f"{config.name}-{topology.name.replace(' × ', 'x').replace(':', '-')}.yaml"
    text = winning_yaml(result, presets, overrides, command=f"{command} --search")
    storage.write_text(path, text)
    print(f"wrote {path}: maxlm train {path}")
    return result


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
