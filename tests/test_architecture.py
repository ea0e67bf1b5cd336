"""The house: a room imports only rooms above it, and the words that it promises about itself."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import maxlm

PACKAGE = Path(maxlm.__file__).parent
# From the top: each may import itself and what stands before it.
ROOMS = [
    "errors",
    "storage",
    "lock",
    "end_with_parent",
    "batch",
    "config",
    "parallel",
    "kernels",
    "model",
    "interop",
    "data",
    "train",
    "generate",
    "evaluate",
    "plan",
    "launch",
    "cli",
]
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem != "__init__")


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [node.module]
                if node.module != "maxlm"
                else [f"maxlm.{alias.name}" for alias in node.names]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {n.split(".")[1] for n in names if n.startswith("maxlm.")}
    return rooms & set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_above_it(path):
    allowed = ROOMS[: ROOMS.index(room_of(path)) + 1]
    assert imported_rooms(path) <= set(allowed)


def test_the_planners_parts_know_only_those_before_them():
    knows = {
        "compiling": set(),
        "reading": {"compiling"},
        "arithmetic": set(),
        "report": {"reading"},
        "search": {"arithmetic"},
    }
    for part, others in knows.items():
        found = set()
        for path in (PACKAGE / "plan" / part).glob("*.py"):
            found |= set(re.findall(r"from maxlm\.plan\.(\w+)", path.read_text())) & set(knows)
        assert found - {part} <= others, part


def test_files_and_functions_stay_short():
    for path in FILES:
        source = path.read_text()
        assert source.count("\n") <= 450, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno <= 80, f"{path}: {node.name}"


def test_the_train_step_fits_on_a_screen():
    from maxlm.train import step

    tree = ast.parse(inspect.getsource(step.make_train_step))
    inner = [n for n in ast.walk(tree) if getattr(n, "name", "") == "train_step"]
    assert inner[0].end_lineno - inner[0].lineno < 40


def test_from_the_command_to_the_loss_in_five_files_and_four_hops():
    # Each names the next in a call: follow them with an editor.
    hops = [
        ("cli/train.py", "train("),
        ("train/loop.py", "train_step("),
        ("train/step.py", ".loss("),
        ("model/decoder.py", "cross_entropy("),
        ("kernels/cross_entropy.py", "def cross_entropy("),
    ]
    for file, call in hops:
        assert call in (PACKAGE / file).read_text(), (file, call)


def test_every_command_answers_help_without_heavy_imports():
    import subprocess
    import sys

    from maxlm.cli.main import COMMANDS

    check = (
        "import sys, maxlm.cli.main as m\n"
        "try: m.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'jax', 'numpy', 'pydantic', 'grain', 'orbax', 'pyarrow', 'rich', 'yaml'}\n"
        "sys.exit('imported ' + str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    for name in ["", *COMMANDS]:
        arguments = [name, "--help"] if name else ["--help"]
        done = subprocess.run(
            [sys.executable, "-c", check, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (name, done.stderr)
        assert "usage: maxlm" in done.stdout
        assert name == "" or "example" in done.stdout.lower(), name
