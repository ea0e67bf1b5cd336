"""The bars and tables of a plan's page, as HTML text.

In come a plan's parts; out come fragments in which every text is escaped. What a bar shows when it is
pointed at also stands in the table beside it, so that nothing needs a pointer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from maxlm.plan.report.grouped import group_collectives
from maxlm.plan.report.parts import Part, memory_parts, time_parts
from maxlm.plan.report.short_shape import short_shape
from maxlm.plan.report.units import UNKNOWN, dollars, memory_size, share, step_seconds
from maxlm.plan.report.verdict import is_charged
from maxlm.plan.result import Memory, Plan, StepTime
from maxlm.train import quantities as q

OPERATIONS = 10
Show = Callable[[float | None], str]


def memory_card(memory: Memory) -> str:
    """Memory by kind against capacity: a bar and its table."""
    whole = max(memory.total, memory.capacity)
    rows = []
    if memory.fits:
        rows.append(_row("", "free", memory.capacity - memory.total, whole, memory_size, ""))
    else:
        told = f"of the above beyond the {memory_size(memory.capacity)} that a program may use"
        too_much = memory.total - memory.capacity
        rows.append(_row("var(--bad)", "too much", too_much, whole, memory_size, told))
    if memory.host:
        rows.append(_row("", "in host memory", memory.host, None, memory_size, "not on the device"))
    title = f"{memory_size(memory.total)} of {memory_size(memory.capacity)} per device"
    return _card(
        "Memory", title, memory_parts(memory), whole, memory_size, rows, _over(memory, whole)
    )


def time_card(time: StepTime) -> str:
    """Time by kind: a bar and its table."""
    rows = []
    if time.overlapped:
        hidden, meaning = (
            time.overlapped - time.exposed,
            "collectives beside compute, no part of it",
        )
        rows.append(_row("", "hidden", hidden, None, step_seconds, meaning))
    if time.bubble:
        meaning = "stages that wait, part of the above"
        rows.append(_row("", "bubble", time.bubble, time.total, step_seconds, meaning))
    title = f"{step_seconds(time.total)} a step"
    return _card("Time", title, time_parts(time), time.total, step_seconds, rows, "")


def operations(plan: Plan) -> str:
    """The costliest operations with the lines of the model that they come from."""
    shown = plan.operations[:OPERATIONS]
    total = plan.time.total if plan.time else 0.0
    body = "".join(
        f'<tr><td class="num">{step_seconds(one.seconds)}{" *" if is_charged(plan, one) else ""}</td>'
        f'<td class="num">{share(one.seconds, total) if total else UNKNOWN}</td>'
        f'<td class="num">{one.times:,}</td><td>{escape(one.kind)}</td>'
        f'<td class="mono">{escape(one.source or "not known")}</td>'
        f'<td class="mono" title="{escape(one.module)}">{escape(one.name)} '
        f"{escape(short_shape(one.shape))}</td></tr>"
        for one in shown
    )
    heads = _heads(("seconds", 1), ("of step", 1), ("runs", 1), "kind", "source", "operation")
    hint = ""
    if any(is_charged(plan, one) for one in shown):
        hint = '<p class="hint">* without an estimate of the compiler: bytes over bandwidth</p>'
    return _table("Costliest operations", heads, body, hint)


def collectives(plan: Plan) -> str:
    """Every collective, grouped by kind, axes and overlap."""
    groups = group_collectives(plan.collectives)
    body = "".join(
        f'<tr><td class="word">{escape(g.kind)}</td><td>{escape(g.over_with_size)}</td>'
        f'<td class="num">{g.times:,}</td><td class="num">{g.wire_bytes / 1e9:,.3f}</td>'
        f'<td class="num">{step_seconds(g.seconds)}</td>'
        f"<td{'' if g.is_overlapped else ' class=blocking'}>{g.how}</td>"
        f"<td>{'between slices or machines' if g.network else 'links'}</td>"
        f'<td class="mono">{escape(", ".join(g.sources[:3]))}</td></tr>'
        for g in groups
    )
    heads = _heads(
        "kind", "over", ("runs", 1), ("GB on wire", 1), ("seconds", 1), "how", "network", "source"
    )
    return _table("Collectives", heads, body, "")


def comparison(plans: Sequence[Plan]) -> str:
    """One row a plan, both bars beside the figures; bars of time share one scale."""
    slowest = max((plan.time.total for plan in plans if plan.time), default=0.0)
    fullest = max((max(p.memory.total, p.memory.capacity) for p in plans if p.memory), default=0)
    best = max((p.mfu for p in plans if p.mfu is not None and _fits(p)), default=None)
    body = "".join(
        _compared_row(plan, number, slowest, fullest, best) for number, plan in enumerate(plans, 1)
    )
    heads = _heads(
        "plan", "topology", "mesh", ("step", 1), ("MFU", 1), "time", ("memory", 1), "",
        ("tokens/s", 1), ("cost", 1),
    )  # fmt: skip
    times = next((time_parts(plan.time) for plan in plans if plan.time), [])
    memories = next((memory_parts(plan.memory) for plan in plans if plan.memory), [])
    keys = _keys("time", times) + _keys("memory", memories)
    return (
        '<section class="card numbers" aria-label="Plans compared"><div class="scroll"><table>'
        f"<thead>{heads}</thead><tbody>{body}</tbody></table></div>{keys}</section>"
    )


def _compared_row(plan: Plan, number: int, slowest: float, fullest: int, best: float | None) -> str:
    time, memory = plan.time, plan.memory
    spent = _bar(time_parts(time), slowest, step_seconds, "small") if time else ""
    held = ""
    if memory:
        parts = memory_parts(memory)
        held = _bar(parts, fullest, memory_size, "small", _over(memory, fullest))
    mesh = " × ".join(f"{axis} {size}" for axis, size in plan.mesh.items()) or "one device"
    is_best = best is not None and plan.mfu == best and _fits(plan)
    full = memory_size(memory.total if memory else None)
    over = "" if _fits(plan) or memory is None else ' class="num blocking"'
    return (
        f'<tr><td><a href="#plan-{number}">{escape(plan.config)}</a></td>'
        f"<td>{escape(plan.topology)}</td><td>{escape(mesh)}</td>"
        f'<td class="num">{step_seconds(time.total if time else None)}</td>'
        f'<td class="num{" best" if is_best else ""}">{q.percent(plan.mfu)}</td><td>{spent}</td>'
        f"<td{over or ' class=num'}>{full}</td><td>{held}</td>"
        f'<td class="num">{q.count(plan.tokens_per_second)}</td>'
        f'<td class="num">{dollars(plan.cost.dollars)}</td></tr>'
    )


def _keys(title: str, parts: Sequence[Part]) -> str:
    if not parts:
        return ""
    items = "".join(
        f'<li><span class="swatch" style="background:var(--c{i})"></span>{escape(part.name)}</li>'
        for i, part in enumerate(parts)
    )
    return f'<ul class="key"><li class="soft">{title}:</li>{items}</ul>'


def _fits(plan: Plan) -> bool:
    return plan.memory is not None and plan.memory.fits


def _over(memory: Memory, whole: int) -> str:
    """What lies beyond the capacity, as stripes over the bar; empty where nothing does."""
    if memory.fits:
        return ""
    start = 100 * memory.capacity / whole
    end = 100 * (whole - memory.total) / whole
    told = f"over the {memory_size(memory.capacity)} that a program may use"
    return (
        f'<span class="over" style="left:{start:.3f}%;right:{end:.3f}%" title="'
        f'{memory_size(memory.total - memory.capacity)} {told}"></span>'
    )


def _card(
    name: str,
    title: str,
    parts: Sequence[Part],
    whole: float,
    show: Show,
    rows: Sequence[str],
    over: str,
) -> str:
    body = "".join(
        _row(f"var(--c{i})", part.name, part.amount, whole, show, part.meaning)
        for i, part in enumerate(parts)
    )
    bar = _bar(parts, whole, show, "", over)
    return (
        f'<div class="card"><h3>{name}<small>{title}</small></h3>{bar}'
        f'<table class="parts"><tbody>{body}{"".join(rows)}</tbody></table></div>'
    )


def _bar(parts: Sequence[Part], whole: float, show: Show, size: str, over: str = "") -> str:
    pieces = [
        f'<span style="width:{100 * part.amount / whole:.4f}%;background:var(--c{i})" '
        f'title="{escape(part.name)}: {show(part.amount)} ({share(part.amount, whole)})"></span>'
        for i, part in enumerate(parts)
        if part.amount and whole
    ]
    told = ", ".join(f"{part.name} {show(part.amount)}" for part in parts)
    return (
        f'<div class="stack {size}" role="img" aria-label="{escape(told)}">'
        f"{''.join(pieces)}{over}</div>"
    )


def _row(
    colour: str, name: str, amount: float, whole: float | None, show: Show, meaning: str
) -> str:
    """One kind; `whole` None: it is no part of the bar."""
    swatch = f'<span class="swatch" style="background:{colour or "var(--grid)"}"></span>'
    of = share(amount, whole) if whole is not None else ""
    return (
        f'<tr><th scope="row">{swatch}{escape(name)}</th><td class="num">{show(amount)}</td>'
        f'<td class="num">{of}</td><td class="soft">{escape(meaning)}</td></tr>'
    )


def _heads(*names: str | tuple[str, int]) -> str:
    """Names of columns; a pair: of numbers, to the right."""
    cells = "".join(
        f'<th scope="col" class="num">{name[0]}</th>'
        if isinstance(name, tuple)
        else f'<th scope="col">{name}</th>'
        for name in names
    )
    return f"<tr>{cells}</tr>"


def _table(title: str, heads: str, body: str, hint: str) -> str:
    if not body:
        return ""
    return (
        f'<section class="card"><h2>{title}</h2><div class="scroll"><table><thead>{heads}</thead>'
        f"<tbody>{body}</tbody></table></div>{hint}</section>"
    )
