"""What README and docs say exists: commands, options, links, files, fields, counts."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from maxlm.cli.main import COMMANDS, _parse
from maxlm.config.derive_model import resolve_model
from maxlm.config.load import load_config
from maxlm.config.options import place_at
from maxlm.config.presets import preset_names
from maxlm.config.schema import RunConfig
from maxlm.model.count import count_parameters

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = {"", "sh", "bash", "console"}
# Whom the pages may link to; a new host is added here when somebody has read what is there.
HOSTS = {"arxiv.org", "github.com", "semver.org"}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(text: str, kinds: set[str]) -> list[str]:
    """Fenced code blocks of some kinds."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for kind, body in found if kind in kinds]


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def commands(block: str) -> Iterator[list[str]]:
    """Words of each `maxlm …` in a block of shell, pipes and comments taken apart."""
    for line in block.replace("\\\n", " ").splitlines():
        line = line.strip().removeprefix("$ ")
        if not line.startswith("maxlm ") or re.match(r"maxlm \w+:", line):  # the latter is output
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|<>")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        tokens = list(lexer)
        for index, token in enumerate([*tokens, "|"]):
            if token == "|":
                if words[:1] == ["maxlm"]:
                    yield words[1:]
                words = []
            elif token not in "<>" and not (index and tokens[index - 1] in "<>"):
                words.append(token)


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"maxlm {command}")
    importlib.import_module(f"maxlm.cli.{command}").configure(parser)
    return parser


def subparsers_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def check_command(words: list[str]) -> None:
    """The command parses; overrides name options, and configs without `.yaml` are presets."""
    shown = f"maxlm {shlex.join(words)}"
    if "--help" in words:
        return
    assert words[0] in COMMANDS, shown
    try:
        parsed = _parse(parser_of(words[0]), words[1:])
    except SystemExit:
        pytest.fail(f"does not parse: {shown}")
    configs = []
    if words[0] == "train":
        configs = [parsed.config]
    elif words[:2] == ["config", "show"]:
        configs = parsed.arguments
    elif words[:2] == ["config", "check"]:
        configs = parsed.configs
    overrides = [*getattr(parsed, "overrides", []), *(c for c in configs if "=" in c)]
    for override in overrides:
        key = override.split("=")[0]
        assert place_at(tuple(key.split("."))) is not None, f"no option {key}: {shown}"
    for config in configs:
        if "=" not in config and not config.endswith((".yaml", ".yml")):
            assert config in preset_names(), f"no preset {config}: {shown}"


@each_page
def test_every_command_in_a_page_parses(page):
    for block in blocks(page.read_text(), SHELL):
        for words in commands(block):
            check_command(words)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_of_the_help_parses(name):
    parser = parser_of(name)
    for one in [parser, *subparsers_of(parser).values()]:
        # What an example does is written beside it, set off by spaces.
        joined = re.sub(r" *\\\n\s*", " ", one.epilog or "")
        epilog = re.sub(r"(?<=\S) {2,}.*", "", joined)
        for words in commands(epilog):
            check_command(words)


@each_page
def test_commands_and_options_named_in_the_text_exist(page):
    for code in re.findall(r"`(maxlm [^`]+)`", without_blocks(page.read_text())):
        words = shlex.split(code)[1:]
        if words[0] == "COMMAND" or words[0].startswith("-"):
            continue
        assert words[0] in COMMANDS, code
        parser = parser_of(words[0])
        actions = subparsers_of(parser)
        known = set(parser._option_string_actions)
        if actions and len(words) > 1 and words[1].islower():
            for action in words[1].split("|"):
                assert action in actions, code
                known |= set(actions[action]._option_string_actions)
        assert {w for w in words if w.startswith("--")} <= known, code


@each_page
def test_every_config_in_a_page_loads(page, tmp_path):
    for block in blocks(page.read_text(), {"yaml"}):
        path = tmp_path / "page.yaml"
        path.write_text(block)
        load_config(str(path))


@each_page
def test_options_named_in_the_text_exist(page):
    sections = "|".join(n for n in RunConfig.model_fields if n not in ("name", "output"))
    pattern = rf"`((?:{sections})\.[a-z_0-9.]+)(?:=[^`]*)?`"
    for key in re.findall(pattern, without_blocks(page.read_text())):
        if not key.endswith((".py", ".md", ".yaml", ".safetensors")):
            assert place_at(tuple(key.split("."))) is not None, key


@each_page
def test_python_in_a_page_compiles_and_imports_what_exists(page):
    for block in blocks(page.read_text(), {"python"}):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("maxlm"):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@each_page
def test_links_and_files_exist(page):
    text = without_blocks(page.read_text())
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target
    for path in re.findall(r"`((?:maxlm|tests|tools|configs|docs)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / path).exists(), path


def anchors(page: Path) -> set[str]:
    """Names of the headings, as forges make them."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@each_page
def test_pages_name_no_machine_path_no_ticket_and_no_unknown_host(page):
    text = page.read_text()
    hosts = set(re.findall(r"https?://([^/\s)>`'\"]+)", text))
    assert hosts <= HOSTS
    local = re.sub(r"\w+://\S+", "", text)
    assert not re.findall(r"(?:^|[\s`'\"(=])(/[a-z]+/\w\S*)", local), "an absolute path"
    assert not re.findall(r"(?<![\w&(/])#\d+|\b[Ii]ssue \d+", local), "the number of a ticket"


def test_every_page_is_on_the_map():
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


def test_make_targets_in_the_pages_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"^make ([\w-]+)$|`make ([\w-]+)`", page.read_text(), re.MULTILINE)
        assert {a or b for a, b in named} <= targets, page.name


def test_every_field_of_every_record_is_explained():
    explained = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "metrics.md").read_text()))
    for file in ("train/records.py", "train/loop.py", "evaluate/perplexity.py"):
        for node in ast.walk(ast.parse((ROOT / "maxlm" / file).read_text())):
            if isinstance(node, ast.Dict):
                keys = {k.value for k in node.keys if isinstance(k, ast.Constant)}
                assert keys <= explained, f"{file}: {sorted(keys - explained)}"


def test_parameter_counts_of_the_models_page_are_those_of_the_presets():
    page = (ROOT / "docs" / "model.md").read_text()
    rows = dict(re.findall(r"^\| `(models/[\w.-]+)` \| ([\d,]+)", page, re.MULTILINE))
    assert set(rows) == {name for name in preset_names() if name.startswith("models/")}
    for name, count in rows.items():
        config = load_config(name)
        vocab_size = config.model.vocab_size or 257
        model = resolve_model(config.model, vocab_size=vocab_size, length=config.data.length)
        assert f"{count_parameters(model):,}" == count, name
