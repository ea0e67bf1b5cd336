"""The page's own text: tiles, tables of final numbers, configuration, data and environment.

In come histories; out go HTML fragments. Every text that comes from a run is escaped here.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from html import escape
from typing import Any

from maxlm.evaluate.report.facts import final_numbers
from maxlm.evaluate.report.history import History
from maxlm.train import quantities as q

Rows = list[tuple[str, str]]


def tiles(history: History) -> str:
    """The final numbers of one run, as tiles."""
    n = final_numbers(history)
    shown = [("Training loss", q.number(n["loss"]), "mean of the last 2%")]
    for name, found in list(n["evals"].items())[:3]:
        if found["best"] is not None:
            bits = found["best"].get("bits_per_byte")
            more = f", {q.number(bits)} bits/byte" if bits is not None else ""
            note = f"step {found['best']['step']:,}{more}"
            shown.append((f"Best loss on {name}", q.number(found["best"]["loss"]), note))
    total = n["total_steps"]
    shown += [
        ("Steps", f"{n['step']:,}", f"of {total:,}" if total else ""),
        ("Tokens", q.count(n["tokens"]), _per_parameter(n)),
        ("Wall time", q.duration(n["wall_seconds"]), _sessions_note(history)),
        ("Tokens per second", q.count(n["tokens_per_second"]), "median"),
    ]
    if n["mfu"] is not None:
        shown.append(("MFU", q.percent(n["mfu"]), "median"))
    if n["parameters"] is not None:
        shown.append(("Parameters", q.count(n["parameters"]), f"{n['parameters']:,}"))
    cells = "".join(
        f'<div class="tile"><dt>{escape(name)}</dt><dd>{escape(value)}'
        f"<small>{escape(note)}</small></dd></div>"
        for name, value, note in shown
    )
    return f'<dl class="tiles">{cells}</dl>'


def comparison(histories: list[History], now: float | None) -> str:
    """Final numbers of several runs, a column each; the best of a row is marked."""
    numbers = [final_numbers(h) for h in histories]
    sets = list(dict.fromkeys(name for n in numbers for name in n["evals"]))
    rows: list[tuple[str, list[str], list[float | None], int]] = []

    def row(label: str, values: list[Any], show: Callable[[Any], str], best: int = 0) -> None:
        if any(v is not None for v in values):
            texts = ["–" if v is None else show(v) for v in values]
            rows.append((label, texts, values, best))

    row("status", [h.status(now) for h in histories], str)
    row("steps", [n["step"] for n in numbers], lambda v: f"{v:,}")
    row("tokens", [n["tokens"] for n in numbers], q.count)
    row("training loss (last 2%)", [n["loss"] for n in numbers], q.number, -1)
    for name in sets:
        found = [n["evals"].get(name, {"best": None, "last": {}}) for n in numbers]
        row(f"{name}: best loss", [(f["best"] or {}).get("loss") for f in found], q.number, -1)
        row(f"{name}: at step", [(f["best"] or {}).get("step") for f in found], lambda v: f"{v:,}")
        row(f"{name}: last loss", [f["last"].get("loss") for f in found], q.number, -1)
        bits = [(f["best"] or {}).get("bits_per_byte") for f in found]
        row(f"{name}: best bits per byte", bits, q.number, -1)
    row("wall time", [n["wall_seconds"] for n in numbers], q.duration)
    row("tokens per second (median)", [n["tokens_per_second"] for n in numbers], q.count, 1)
    row("MFU (median)", [n["mfu"] for n in numbers], q.percent, 1)
    row("parameters", [n["parameters"] for n in numbers], q.count)
    row("device memory", [n["device_memory_bytes"] for n in numbers], q.size)
    row("skipped steps", [n["skipped_steps"] for n in numbers], str)
    row("resumes", [n["resumes"] for n in numbers], str)
    body = "".join(
        f'<tr><th scope="row">{escape(label)}</th>{_cells(texts, values, best)}</tr>'
        for label, texts, values, best in rows
    )
    return (
        '<section class="card numbers" aria-label="Final numbers"><div class="scroll"><table>'
        f"<thead><tr><th></th>{_run_heads(histories)}</tr></thead><tbody>{body}</tbody></table></div>"
        "</section>"
    )


def configuration(histories: list[History]) -> str:
    """Every option of every run; with several runs, what differs is marked."""
    configs = [flatten(h.start.get("config") or {}) for h in histories]
    rules = [{d["key"]: d["rule"] for d in h.start.get("derived") or []} for h in histories]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    if not keys:
        return ""
    body, different = [], 0
    for key in keys:
        values = [config.get(key, "–") for config in configs]
        differs = len(set(values)) > 1
        different += differs
        cells = "".join(
            f'<td class="mono">{escape(value)}{_rule(rule.get(key))}</td>'
            for value, rule in zip(values, rules, strict=True)
        )
        mark = ' class="differs"' if differs else ""
        body.append(f'<tr{mark}><th scope="row" class="mono">{_key(key)}</th>{cells}</tr>')
    many = len(histories) > 1
    heads = _run_heads(histories) if many else "<th>value</th>"
    only = (
        '<label class="check"><input type="checkbox" id="config-differs" checked> only what differs'
        "</label>"
    )
    note = f"{different} of {len(keys)} options differ" if many else f"{len(keys)} options"
    return (
        f'<details class="long" id="config"{" open" if many else ""}><summary>Configuration '
        f'<small>{note}</small></summary><div class="filter">'
        '<input type="search" id="config-search" placeholder="search, e.g. optimizer" '
        f'aria-label="Search the configuration">{only if many else ""}'
        '<output id="config-count"></output></div><div class="scroll"><table>'
        f"<thead><tr><th>option</th>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        "</details>"
    )


def samples(histories: list[History]) -> str:
    """The place where the script shows samples, if there are any."""
    if not any(h.samples for h in histories):
        return ""
    return (
        '<section class="card"><h2>Samples</h2><div class="sample-controls">'
        '<label>prompt <select id="sample-prompt"></select></label>'
        '<label>step <input type="range" id="sample-step" min="0" step="1"></label>'
        '<output id="sample-at"></output></div><div class="samples" id="samples"></div></section>'
    )


def data_summary(histories: list[History]) -> str:
    """What was trained on, as the runs' start records tell it."""
    parts = [
        (h.name, [(key, value) for key, value in flatten(h.start.get("data") or {}).items()])
        for h in histories
    ]
    return _details("trained-on", "Data", parts)


def environment(histories: list[History]) -> str:
    """Devices, versions, command, sessions and checkpoints."""
    return _details(
        "environment", "Environment, sessions", [(h.name, _facts(h)) for h in histories]
    )


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested dicts, and lists of them, as `a.b.c` → text."""
    if isinstance(value, dict) and (value or not prefix):
        flat: dict[str, str] = {}
        for key, item in value.items():
            flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
        return flat
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return flatten({str(i): item for i, item in enumerate(value)}, prefix)
    return {prefix: _text(value)}


def moment(seconds: float) -> str:
    """A time of day, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _facts(history: History) -> Rows:
    start = history.start
    rows = [("run folder", history.folder)]
    if start.get("devices") is not None:
        devices = start["devices"]
        number = len(devices) if isinstance(devices, list) else devices
        kind = start.get("device_kind") or "device"
        rows.append(("devices", f"{number} × {kind}, {start.get('processes') or 1} process(es)"))
    rows += [(f"mesh.{axis}", size) for axis, size in flatten(start.get("mesh") or {}).items()]
    for key, show in (
        ("parameters", "{:,}"),
        ("tokens_per_step", "{:,}"),
        ("flops_per_token", "{:.4g}"),
        ("mfu_formula", "{}"),
        ("peak_tflops_per_device", "{}"),
        ("command", "{}"),
    ):
        if start.get(key) is not None:
            value = start[key]
            text = show.format(value) if isinstance(value, (int, float)) else _text(value)
            rows.append((key.replace("_", " "), text))
    rows += [(f"version of {k}", v) for k, v in flatten(start.get("versions") or {}).items()]
    for number, session in enumerate(history.sessions, 1):
        resumed = session.start.get("resumed_from")
        begun = "from the beginning" if resumed is None else f"resumed from step {resumed:,}"
        end = session.end.get("reason", "ended") if session.end else "no end record"
        spent = q.duration(session.last_time - session.start["time"])
        text = f"{moment(session.start['time'])}, {begun}, to step {session.reached:,}"
        rows.append((f"session {number}", f"{text} in {spent}: {end}"))
    if history.checkpoints:
        last = history.checkpoints[-1]
        text = f"{len(history.checkpoints)}, the last at step {last['step']:,}"
        if last.get("bytes") is not None:
            text += f", {q.size(last['bytes'])}"
        rows.append(("checkpoints", text))
    return rows


def _details(name: str, title: str, parts: list[tuple[str, Rows]]) -> str:
    if not any(rows for _, rows in parts):
        return ""
    tables = []
    for run, rows in parts:
        head = f"<h3>{escape(run)}</h3>" if len(parts) > 1 else ""
        body = "".join(
            f'<tr><th scope="row">{_key(key)}</th><td>{escape(value)}</td></tr>'
            for key, value in rows
        )
        tables.append(f'{head}<div class="scroll"><table><tbody>{body}</tbody></table></div>')
    return (
        f'<details class="long" id="{name}"><summary>{title}</summary>{"".join(tables)}</details>'
    )


def _run_heads(histories: list[History]) -> str:
    return "".join(
        f'<th scope="col"><span class="swatch" style="background:var(--c{i % 8})"></span> '
        f"{escape(h.name)}</th>"
        for i, h in enumerate(histories)
    )


def _cells(texts: list[str], values: list[float | None], best: int) -> str:
    """Cells of a row; `best` is -1 where the lowest wins, 1 where the highest, 0 where none."""
    known = [v for v in values if v is not None]
    winner = (min if best < 0 else max)(known) if best and len(known) > 1 else None
    cells = []
    for text, value in zip(texts, values, strict=True):
        mark = ' class="best"' if winner is not None and value == winner else ""
        cells.append(f"<td{mark}>{escape(text)}</td>")
    return "".join(cells)


def _rule(rule: str | None) -> str:
    return f'<span class="rule">derived: {escape(str(rule))}</span>' if rule else ""


def _key(key: str) -> str:
    return escape(key).replace(".", ".<wbr>").replace("_", "_<wbr>")


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value) or "(none)"
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_text(v)}" for k, v in value.items()) or "(none)"
    return str(value)


def _per_parameter(numbers: dict[str, Any]) -> str:
    if not numbers["parameters"] or not numbers["tokens"]:
        return ""
    return f"{q.number(numbers['tokens'] / numbers['parameters'], 3)} per parameter"


def _sessions_note(history: History) -> str:
    number = len(history.sessions)
    return "" if number == 1 else f"in {number} sessions"
