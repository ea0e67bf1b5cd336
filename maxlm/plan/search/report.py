"""What a search found, as a table for a terminal and as a config that `maxlm train` loads.

In: a `SearchResult`; out: text.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from typing import Any

from maxlm.config.document import COMMAND_LINE, Node, Origin
from maxlm.config.dump import dump
from maxlm.config.mesh_axes import MESH_AXES
from maxlm.config.override import apply_override
from maxlm.plan.search.search import Row, SearchResult, Status

GIB = 1 << 30
# Of every config that a search writes.
FIRST_WORDS = "The fastest of"


def search_table(result: SearchResult) -> str:
    """Layouts that were compiled, fastest first, and how far arithmetic was from the compiler.

    Where nothing was compiled, those that arithmetic puts first.
    """
    rows = sorted(result.rows, key=lambda row: (row.seconds is None, row.seconds or 0.0))
    lines = [_HEADER, *(_line(row, row is result.best) for row in rows)]
    if not result.is_compiled:
        lines = [line[:3] + line[4:] for line in lines]
    width = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(w) for cell, w in zip(line, width, strict=True)) for line in lines]
    found = result.candidates
    text.append(
        f"{_done(result)} of {len(found.fitting)} that "
        f"may fit, {found.divided} that divide, {found.considered} considered: {result.ended}"
    )
    text += [f"compiled ÷ arithmetic: {line}" for line in _errors(result)]
    if gain := _gain(result):
        text.append(gain)
    return "\n".join(line.rstrip() for line in text)


def status_line(status: Status) -> str:
    """Where a search is, in one line."""
    best = "none fits yet"
    if status.best is not None and status.best.compiled is not None:
        plan = status.best.compiled
        best = f"best {status.best.seconds:.4g} s"
        best += f" ({plan.mfu:.1%} MFU)" if plan.mfu is not None else ""
    running = ", ".join(f"{label} ({seconds:.0f} s)" for label, seconds in status.running.items())
    left = "" if status.seconds_left is None else f", about {status.seconds_left / 60:.0f} min left"
    return (
        f"{status.compiled} done, {status.left} to go{left}; {best}; at work on {running or 'none'}"
    )


def winning_yaml(
    result: SearchResult,
    presets: Sequence[str],
    overrides: Sequence[str],
    *,
    command: str = "",
) -> str:
    """The best layout as a config.

    Args:
        result: with a best row.
        presets: names or paths of the configs that were searched from.
        overrides: `key=value` that were given besides.
        command: that searched.
    """
    best = result.best
    assert best and best.compiled
    node = Node({}, Origin(COMMAND_LINE))
    for override in overrides:
        node = apply_override(node, override)
    names = [os.path.abspath(name) if os.path.exists(name) else name for name in presets]
    tree: dict[str, Any] = {"extends": names} | node.plain()
    for key, value in best.candidate.settings.items():
        *path, last = key.split(".")
        section = tree
        for name in path:
            section = section.setdefault(name, {})
        section[last] = value
    parallel = tree["parallel"]
    if not parallel["compiler_options"]:
        del parallel["compiler_options"]
    tree["parallel"] = {a: parallel.pop(a) for a in MESH_AXES} | parallel
    comments = [f"# {line}".rstrip() for line in _comments(result, best, command)]
    return "\n".join([*comments, dump(tree)])


_HEADER = ("", "layout", "arithmetic s", "compiled s", "MFU", "GiB", "fits")


def _line(row: Row, is_best: bool) -> tuple[str, ...]:
    plan, mark = row.compiled, "→" if is_best else ""
    label, arithmetic = row.candidate.label, f"{row.candidate.seconds:.4g}"
    if plan is None:
        return mark, label, arithmetic, "failed", "", "", row.error.splitlines()[0][:60]
    memory = plan.memory
    return (
        mark,
        label,
        arithmetic,
        f"{plan.time.total:.4g}" if plan.time else "–",
        f"{plan.mfu:.1%}" if plan.mfu is not None else "–",
        f"{memory.total / GIB:.1f}" if memory else "–",
        "yes" if memory and memory.fits else "no",
    )


def _done(result: SearchResult) -> str:
    if not result.is_compiled:
        return f"{len(result.rows)} by arithmetic alone, nothing was compiled,"
    return f"{len(result.rows)} compiled in {result.seconds / 60:.1f} minutes"


def _errors(result: SearchResult) -> list[str]:
    if not result.is_compiled:
        return []
    return [
        f"{what} {mean:.2f} on average ({least:.2f} to {most:.2f})"
        for what, (mean, least, most) in result.corrections.errors().items()
    ]


def _gain(result: SearchResult) -> str:
    """The best against the layout as given; empty where one of them does not fit."""
    given = next((row.seconds for row in result.rows if row.candidate.is_given), None)
    if result.best is None or not result.best.seconds or not given:
        return ""
    if result.best.candidate.is_given:
        return "the layout as given is the best of them"
    return f"a step of the best takes {result.best.seconds / given:.1%} of the given layout's"


def _comments(result: SearchResult, best: Row, command: str) -> list[str]:
    plan = best.compiled
    assert plan and plan.time and plan.memory
    versions = ", ".join(f"{name} {version}" for name, version in plan.versions.items())
    how = f"by the compiler's schedule ({versions})"
    if plan.method == "analytic":
        how = "by arithmetic: nothing was compiled, nothing measured"
    mfu = "" if plan.mfu is None else f", {plan.mfu:.1%} MFU"
    lines = [
        f"{FIRST_WORDS} {len(result.rows)} layouts that were planned for {plan.topology}, "
        f"of {len(result.candidates.fitting)} ranked by arithmetic:",
        f"{plan.time.total:.4g} s a step{mfu}, {plan.memory.total / GIB:.1f} of "
        f"{plan.memory.capacity / GIB:.1f} GiB, {how}.",
        f"Searched {datetime.date.today().isoformat()}; {result.ended}.",
    ]
    lines += [f"Compiled ÷ arithmetic: {line}." for line in _errors(result)]
    if gain := _gain(result):
        lines.append(f"{gain[0].upper()}{gain[1:]}.")
    return [*lines, f"Again: {command}"] if command else lines
