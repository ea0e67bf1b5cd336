"""Writes a run's page: one HTML file that needs nothing else, neither network nor folder.

In come run folders; out goes the file. The page is `page.html` with the style, the script and the
runs' data put in; data travel as JSON in which no `<` survives, texts are escaped.
"""

from __future__ import annotations

import json
import re
import time
from html import escape
from importlib import resources

import maxlm
from maxlm import storage
from maxlm.errors import ConfigError
from maxlm.evaluate.report import tables
from maxlm.evaluate.report.curves import POINTS, more_fields, run_data
from maxlm.evaluate.report.facts import findings, verdict
from maxlm.evaluate.report.history import History, read_history


def write_report(runs: list[str], output: str | None = None) -> str:
    """Write the page of one run, or of several compared.

    Args:
        runs: run folders, local or remote, finished or still running.
        output: the file to write; by default `report.html` in the first run's folder.

    Returns:
        Where the page was written.

    Raises:
        StorageError: a run has no `metrics.jsonl`, or `output` cannot be written. DataError: the
        records are damaged, or there is none yet. ConfigError: no run named, or one twice.
    """
    if not runs:
        raise ConfigError("no run named: give at least one run folder")
    folders = [run if "://" in run else run.rstrip("/") for run in runs]
    twice = next((f for i, f in enumerate(folders) if f in folders[:i]), None)
    if twice is not None:
        raise ConfigError(f"{twice} is named twice: give each run once")
    path = output or storage.join(folders[0], "report.html")
    histories = [read_history(folder) for folder in folders]
    storage.write_text(path, render(histories))
    return path


def render(histories: list[History], now: float | None = None) -> str:
    """The page as one HTML text."""
    now = time.time() if now is None else now
    for history, name in zip(histories, unique_names([h.folder for h in histories]), strict=True):
        history.name = name
    points = max(200, POINTS * 2 // max(2, len(histories)))
    data = {"runs": [run_data(h, points) for h in histories], "more": more_fields(histories)}
    parts = {
        "version": escape(maxlm.__version__),
        "title": escape(_title(histories)),
        "style": _file("page.css"),
        "header": _header(histories, now),
        "sections": "\n".join(_sections(histories)),
        "footer": f"Written by maxlm {escape(maxlm.__version__)} on {tables.moment(now)}.",
        "data": safe_json(data),
        "script": _file("chart.js") + _file("page.js"),
    }
    # One pass over the template: what is put in is never looked at again.
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _file("page.html"))
    return page.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate is no UTF-8


def safe_json(value: object) -> str:
    """JSON that can stand inside a `<script>` element, whatever strings it holds."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def unique_names(folders: list[str]) -> list[str]:
    """Shortest endings of the paths that tell the runs apart."""
    parts = [folder.rstrip("/").split("/") for folder in folders]
    longest = max(len(p) for p in parts)
    for depth in range(1, longest + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return folders


def _title(histories: list[History]) -> str:
    if len(histories) == 1:
        return f"{histories[0].name} · maxlm"
    return f"{len(histories)} runs compared · maxlm"


def _header(histories: list[History], now: float) -> str:
    if len(histories) == 1:
        history = histories[0]
        status = history.status(now)
        found = "".join(f'<p class="finding">{escape(text)}</p>' for text in findings(history))
        return (
            f'<div class="title"><h1>{escape(history.name)}</h1>'
            f'<span class="status {escape(status)}">{escape(status)}</span></div>'
            f'<p class="path mono">{escape(history.folder)}</p>'
            f'<p class="verdict">{escape(verdict(history, now))}</p>{found}{tables.tiles(history)}'
        )
    remarks = [
        f'<p class="finding"><b>{escape(h.name)}</b> {escape(text)}</p>'
        for h in histories
        for text in findings(h)
    ]
    folded = (
        f"<details><summary>Remarks <small>{len(remarks)}</small></summary>"
        f"{''.join(remarks)}</details>"
    )
    return (
        f"<h1>{len(histories)} runs compared</h1>{tables.comparison(histories, now)}"
        f"{folded if remarks else ''}"
    )


def _sections(histories: list[History]) -> list[str]:
    return [
        tables.samples(histories),
        tables.configuration(histories),
        tables.data_summary(histories),
        tables.environment(histories),
    ]


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")
