"""The table of all options in `docs/configuration.md`, made from the schema."""

from __future__ import annotations

import os

from maxlm import storage
from maxlm.config.options import all_options
from maxlm.errors import ConfigError

BEGIN = "<!-- options: begin (maxlm config options --write docs/configuration.md) -->"
END = "<!-- options: end -->"


def options_table() -> str:
    """Markdown: one table a section, one row an option."""
    lines: list[str] = []
    section = None
    for option in all_options():
        first = option.key.split(".")[0] if "." in option.key else "The run"
        if first != section:
            section = first
            title = f"`{first}`" if "." in option.key else first
            lines += ["", f"### {title}", "", "| option | value | default | |", "|---|---|---|---|"]
        cells = (f"`{option.key}`", option.type, f"`{option.default}`", option.description)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines).strip() + "\n"


def write_table(path: str | os.PathLike[str]) -> None:
    """Put the table between the marks of a Markdown file. Raises ConfigError without marks."""
    text = storage.read_text(path)
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"{path}: has no lines '{BEGIN}' and '{END}' to put the table between")
    storage.write_text(path, f"{head}{BEGIN}\n\n{options_table()}\n{END}{tail}")
