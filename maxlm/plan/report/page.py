"""Plans as one self-contained HTML page: no script, no network, light and dark.

In come plans; out goes the file. One plan fills the page; of several (candidates of a search, a series
over growing pods) a table with both bars of each comes first. The style is that of a run's page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from importlib import resources

import maxlm
from maxlm import storage
from maxlm.errors import ConfigError
from maxlm.plan.report import page_tables as tables
from maxlm.plan.report.verdict import figures, remedies, verdict
from maxlm.plan.result import Plan


def write_page(path: str, plans: Sequence[Plan], explanations: Sequence[Sequence[str]] = ()) -> str:
    """Write the page of one plan, or of several compared.

    Args:
        path: the file, local or remote.
        plans: in the order in which they are shown.
        explanations: of each plan, sentences of `explain`; none: left out.

    Returns:
        `path`.

    Raises:
        ConfigError: no plan, or another number of explanations than of plans. StorageError: the
        file cannot be written.
    """
    storage.write_text(path, render(plans, explanations))
    return path


def render(plans: Sequence[Plan], explanations: Sequence[Sequence[str]] = ()) -> str:
    """The page as one HTML text; arguments and errors as of `write_page`."""
    if not plans:
        raise ConfigError("no plan to show: give at least one")
    if explanations and len(explanations) != len(plans):
        raise ConfigError(f"{len(explanations)} explanations for {len(plans)} plans: give one each")
    told = explanations or [()] * len(plans)
    only = len(plans) == 1
    parts = {
        "version": escape(maxlm.__version__),
        "title": escape(f"{plans[0].topology} · plan" if only else f"{len(plans)} plans · maxlm"),
        "style": _file("maxlm.evaluate.report", "page.css")
        + _file("maxlm.plan.report", "page.css"),
        "header": _head(plans[0], "h1") if only else _compared(plans),
        "sections": "\n".join(
            _section(plan, lines, number, only)
            for number, (plan, lines) in enumerate(zip(plans, told, strict=True), 1)
        ),
        "footer": f"Written by maxlm {escape(maxlm.__version__)}. Nothing here was measured on a chip.",
    }
    # One pass over the template: what is put in is never looked at again.
    page = re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], _file("maxlm.plan.report", "page.html"))
    return page.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate is no UTF-8


def _section(plan: Plan, explanation: Sequence[str], number: int, only: bool) -> str:
    """Everything about one plan."""
    pieces = [] if only else [_head(plan, "h2")]
    bars = [tables.memory_card(plan.memory)] if plan.memory else []
    bars += [tables.time_card(plan.time)] if plan.time else []
    if bars:
        pieces.append(f'<div class="pair">{"".join(bars)}</div>')
    said = {verdict(plan), *remedies(plan)}  # stand above
    pieces += [
        _list("What bounds the step", [line for line in explanation if line not in said]),
        tables.operations(plan),
        tables.collectives(plan),
        _list("Notes", plan.notes),
        _made_by(plan),
    ]
    return f'<section class="plan" id="plan-{number}">{"".join(pieces)}</section>'


def _head(plan: Plan, heading: str) -> str:
    fits = plan.memory is not None and plan.memory.fits
    status = '<span class="status fits">fits</span>' if fits else ""
    if not fits and (plan.memory is not None or plan.time is None):
        status = '<span class="status not">does not fit</span>'
    mesh = " × ".join(f"{axis} {size}" for axis, size in plan.mesh.items()) or "one device"
    chips = f"{plan.chips:,} chip{'s' * (plan.chips > 1)}"
    changes = "".join(f'<p class="finding">{escape(line)}</p>' for line in remedies(plan))
    return (
        f'<div class="title"><{heading}>{escape(plan.config)}</{heading}>{status}</div>'
        f'<p class="path mono">{escape(plan.topology)} · {chips} · {escape(mesh)} · '
        f'{escape(plan.method)}</p><p class="verdict">{escape(verdict(plan))}</p>'
        f"{changes}{_tiles(plan)}"
    )


def _tiles(plan: Plan) -> str:
    tiles = "".join(
        f'<div class="tile"><dt>{escape(name)}</dt><dd>{escape(value)}'
        f"<small>{escape(remark)}</small></dd></div>"
        for name, value, remark in figures(plan)
    )
    return f'<dl class="tiles">{tiles}</dl>'


def _compared(plans: Sequence[Plan]) -> str:
    return f"<h1>{len(plans)} plans compared</h1>{tables.comparison(plans)}"


def _list(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<section class="card"><h2>{title}</h2><ul class="notes">{items}</ul></section>'


def _made_by(plan: Plan) -> str:
    made = [f"{name} {version}" for name, version in plan.versions.items()]
    if plan.compile_seconds is not None:
        made.append(f"compiled in {plan.compile_seconds:,.0f} s")
    return f'<p class="hint">{escape(", ".join(made))}</p>' if made else ""


def _file(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text("utf-8")
