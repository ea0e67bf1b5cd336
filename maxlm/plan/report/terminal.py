"""A plan for the terminal: the verdict first, then where memory and time go, then what costs most.

In comes a `Plan`; out goes text of at most 100 columns. With colours the bars are blocks, without them
letters, so that nothing is lost in a pipe, a log file or a terminal without colours.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import IO

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from maxlm.plan.report.grouped import group_collectives
from maxlm.plan.report.parts import Part, memory_parts, time_parts, widths
from maxlm.plan.report.short_shape import short_shape
from maxlm.plan.report.units import memory_size, share, step_seconds
from maxlm.plan.report.verdict import figures, is_charged, remedies, verdict
from maxlm.plan.result import Memory, Plan, StepTime
from maxlm.train import quantities as q
from maxlm.train.progress import printable

WIDTH = 100
OPERATIONS = 10
_LONGEST = 60  # characters of a name, a shape or a source
_COLOURS = ("blue", "dark_orange", "green", "magenta", "cyan", "yellow")


def print_plan(plan: Plan, stream: IO[str] | None = None) -> None:
    """Write the plan to a stream (stdout by default), in colours where it is a terminal."""
    stream = sys.stdout if stream is None else stream
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")  # a C locale must not end a plan
    can_colour = stream.isatty() and "NO_COLOR" not in os.environ
    stream.write(plan_text(plan, colour=can_colour and os.environ.get("TERM") != "dumb"))


def plan_text(plan: Plan, *, width: int = WIDTH, colour: bool = False) -> str:
    """The plan as text.

    Args:
        plan: any, also one without memory, time, cost or operations.
        width: columns, at least 60.
        colour: whether to write ANSI colours.
    """
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=colour,
        color_system="256" if colour else None,
        legacy_windows=False,
        highlight=False,
        emoji=False,
        markup=False,
    )
    console.print(Group(*_blocks(plan, width, colour)))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _blocks(plan: Plan, width: int, colour: bool) -> list[RenderableType]:
    mesh = " × ".join(f"{axis} {size}" for axis, size in plan.mesh.items()) or "one device"
    made = plan.method
    if plan.compile_seconds is not None:
        made += f" in {q.duration(plan.compile_seconds)}"
    bad = plan.memory is None or not plan.memory.fits
    chips = f"{plan.chips:,} chip{'s' * (plan.chips > 1)}"
    blocks: list[RenderableType] = [
        _text(verdict(plan), "bold red" if bad else "bold green"),
        _text(f"{plan.config} on {plan.topology} ({chips}; {mesh}), {made}"),
    ]
    blocks += [_indented(f"• {line}") for line in remedies(plan)]
    blocks += ["", _inside(_figures(plan))]
    if plan.memory is not None:
        blocks += ["", *_memory(plan.memory, width, colour)]
    if plan.time is not None:
        blocks += ["", *_time(plan.time, width, colour)]
    if plan.operations:
        blocks += ["", *_operations(plan)]
    if plan.collectives:
        blocks += ["", *_collectives(plan)]
    if plan.notes:
        blocks += ["", _heading("Notes"), *(_indented(f"• {note}") for note in plan.notes)]
    if plan.versions:
        told = ", ".join(f"{name} {version}" for name, version in plan.versions.items())
        blocks += ["", _text(told, "dim")]
    return blocks


def _figures(plan: Plan) -> Table:
    table = _grid(3)
    for name, value, remark in figures(plan):
        table.add_row(_text(name), _text(value, "bold"), _text(remark, "dim"))
    return table


def _memory(memory: Memory, width: int, colour: bool) -> list[RenderableType]:
    over = memory.total > memory.capacity
    free = "" if over else f", {memory_size(memory.capacity - memory.total)} free"
    host = f"; {memory_size(memory.host)} in the host's memory" if memory.host else ""
    title = (
        f"Memory per device: {memory_size(memory.total)} of {memory_size(memory.capacity)}{free}"
    )
    whole = max(memory.total, memory.capacity)
    parts = memory_parts(memory)
    mark = memory.capacity if over else None
    return _split(title + host, parts, whole, memory_size, width, colour, mark)


def _time(time: StepTime, width: int, colour: bool) -> list[RenderableType]:
    title = f"Time of a step: {step_seconds(time.total)}"
    if time.overlapped:
        hidden = time.overlapped - time.exposed
        title += f"; {step_seconds(hidden)} of collectives hidden beside compute"
    if time.bubble:
        title += f"; {step_seconds(time.bubble)} of it pipeline bubble"
    return _split(title, time_parts(time), time.total, step_seconds, width, colour, None)


def _split(
    title: str,
    parts: Sequence[Part],
    whole: float,
    show: Callable[[float | None], str],
    width: int,
    colour: bool,
    mark: float | None,
) -> list[RenderableType]:
    """A heading, a bar, and a legend that is also the table of its numbers."""
    bar = Text("  ", no_wrap=True)
    available = width - 4
    cells = widths([part.amount for part in parts], whole, available)
    for part, number, hue in zip(parts, cells, _COLOURS, strict=False):
        bar.append(("█" if colour else part.letter) * number, hue)
    bar.append(("░" if colour else "·") * (available - sum(cells)), "dim")
    rows: list[RenderableType] = [_heading(title), bar]
    if mark is not None:
        at = round(available * mark / whole)
        told = "what a program may use ▲"
        rows.append(Text("  " + (told.rjust(at) if at >= len(told) else "▲".rjust(max(1, at)))))
    legend = _grid(5)
    legend.columns[2].justify = legend.columns[3].justify = "right"
    for part, hue in zip(parts, _COLOURS, strict=False):
        if part.amount:
            key = Text("██" if colour else part.letter, hue)
            value, of = show(part.amount), share(part.amount, whole)
            legend.add_row(key, part.name, value, of, _text(part.meaning, "dim"))
    return [*rows, _inside(legend)]


def _operations(plan: Plan) -> list[RenderableType]:
    shown = plan.operations[:OPERATIONS]
    table = _table("seconds", "of step", "runs", "kind", "source", "operation, shape")
    for one in shown:
        total = plan.time.total if plan.time else 0.0
        of = share(one.seconds, total) if total else ""
        table.add_row(
            step_seconds(one.seconds) + (" *" if is_charged(plan, one) else ""),
            of,
            f"{one.times:,}",
            one.kind,
            _text(_end(one.source) or "not known"),
            _text(f"{_start(one.name)} {_start(short_shape(one.shape))}"),
        )
    told: list[RenderableType] = [
        _heading(f"Costliest operations, {len(shown)} of {len(plan.operations)}"),
        _inside(table),
    ]
    if any(is_charged(plan, one) for one in shown):
        told.append(_indented("* without an estimate of the compiler: bytes over bandwidth"))
    return told


def _collectives(plan: Plan) -> list[RenderableType]:
    groups = group_collectives(plan.collectives)
    table = _table("kind", "over", "runs", "GB on wire", "seconds", "", "network", "source")
    for column in (0, 1):
        table.columns[column].justify = "left"
    for group in groups:
        more = f" +{len(group.sources) - 1}" if len(group.sources) > 1 else ""
        table.add_row(
            group.kind,
            _text(group.over_with_size),
            f"{group.times:,}",
            f"{group.wire_bytes / 1e9:,.3f}",
            step_seconds(group.seconds),
            Text(group.how, "" if group.is_overlapped else "bold red"),
            "slices" if group.network else "links",
            _text(f"{_end(group.sources[0])}{more}" if group.sources else ""),
        )
    wire = sum(group.wire_bytes for group in groups) / 1e9
    return [
        _heading(f"Collectives: {wire:,.1f} GB on the wire per device and step"),
        _inside(table),
    ]


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for head in heads:
        is_number = head in ("seconds", "of step", "runs", "GB on wire")
        wraps = head in ("source", "operation, shape", "over")
        table.add_column(
            head,
            justify="right" if is_number else "left",
            no_wrap=not wraps,  # only these give way where the row is too long
            overflow="fold",
        )
    return table


def _grid(columns: int) -> Table:
    return Table(*[""] * columns, box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))


def _start(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _end(text: str) -> str:
    """The end of a path says more than its beginning."""
    return text if len(text) <= _LONGEST else "…" + text[1 - _LONGEST :]


def _heading(text: str) -> Text:
    return _text(text, "bold")


def _indented(text: str) -> Padding:
    return _inside(_text(text))


def _inside(block: RenderableType) -> Padding:
    return Padding(block, (0, 0, 0, 2))


def _text(text: str, style: str = "") -> Text:
    """Names come from programs: no control character of theirs reaches the terminal."""
    return Text(printable(text), style)
