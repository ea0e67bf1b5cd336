"""Where an instruction comes from: the tables of stack frames at the head of a program's text.

In: the module's lines; out: `file.py:line` for a `stack_frame_id`, the innermost frame of the model's own
code if there is one. Older texts name `source_file` and `source_line` in the metadata instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_ROW = re.compile(r"^(\d+) (.*)$")
_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
PACKAGE = "/maxlm/"


@dataclass(frozen=True)
class StackFrames:
    """The tables, as printed.

    Attributes:
        files: file names by id.
        locations: (file id, line) by id.
        frames: (location id, id of the caller's frame or 0) by id.
    """

    files: dict[int, str] = field(default_factory=dict)
    locations: dict[int, tuple[int, int]] = field(default_factory=dict)
    frames: dict[int, tuple[int, int]] = field(default_factory=dict)

    def source(self, attributes: str) -> str:
        """`file.py:line` that an instruction's attributes point to; empty: they do not say."""
        found = re.search(r"stack_frame_id=(\d+)", attributes)
        stack = self.stack(int(found.group(1))) if found else []
        if not stack:
            file = re.search(r'source_file="([^"]+)"', attributes)
            line = re.search(r"source_line=(\d+)", attributes)
            stack = [(file.group(1), int(line.group(1)))] if file and line else []
        if not stack:
            return ""
        file_name, number = next((f for f in stack if PACKAGE in f[0]), stack[0])
        return f"{_shortened(file_name)}:{number}"

    def stack(self, frame: int) -> list[tuple[str, int]]:
        """(file, line) of a frame and its callers, innermost first."""
        found = []
        while frame in self.frames:
            location, caller = self.frames[frame]
            file, line = self.locations.get(location, (0, 0))
            if file in self.files:
                found.append((self.files[file], line))
            if caller >= frame:  # a frame comes after its caller
                break
            frame = caller
        return found


def read_stack_frames(lines: list[str]) -> StackFrames:
    """Read the tables among a module's lines; empty where there are none."""
    tables: dict[str, dict[int, str]] = {name: {} for name in _TABLES}
    current = None
    for line in lines:
        if line.strip() in tables:
            current = line.strip()
        elif row := _ROW.match(line):
            if current:
                tables[current][int(row.group(1))] = row.group(2)
        elif line.startswith(("ENTRY", "%")):
            break
    locations = {i: _numbers(row) for i, row in tables["FileLocations"].items()}
    frames = {i: _numbers(row) for i, row in tables["StackFrames"].items()}
    return StackFrames(
        files={i: row.strip('"') for i, row in tables["FileNames"].items()},
        locations={i: (n.get("file_name_id", 0), n.get("line", 0)) for i, n in locations.items()},
        # Printed with one added: 1 is no caller.
        frames={
            i: (n.get("file_location_id", 0), n.get("parent_frame_id", 1) - 1)
            for i, n in frames.items()
        },
    )


def _numbers(row: str) -> dict[str, int]:
    return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", row)}


def _shortened(path: str) -> str:
    """From the package on; of another's file, from `site-packages` on."""
    if PACKAGE in path:
        return path[path.rindex(PACKAGE) + 1 :]
    return path.rsplit("/site-packages/", 1)[-1]
