"""From names of configs and overrides to a checked `RunConfig`.

A config file is YAML; `extends:` names what it builds on. What is read later wins: the extended
configs in their order, then the file itself, then the next config named, then the overrides.
Everything wrong is reported at once, each with file, line and key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from maxlm import storage
from maxlm.config.check import Problem, check_config, validate
from maxlm.config.document import COMMAND_LINE, Node, Origin, describe, merge, read_document
from maxlm.config.dump import to_yaml as to_yaml
from maxlm.config.meaning import meaning_diff as meaning_diff
from maxlm.config.options import place_at
from maxlm.config.override import apply_override
from maxlm.config.presets import find_config
from maxlm.config.schema import RunConfig
from maxlm.errors import ConfigError, StorageError


@dataclass(frozen=True)
class Loaded:
    """A config and where its values were written.

    Attributes:
        config: the checked config.
        origins: dotted key → `FILE:LINE` or `command line: KEY=VALUE`, for values that were set.
        files: paths read, in the order of merging.
    """

    config: RunConfig
    origins: dict[str, str]
    files: list[str] = field(default_factory=list)


def load_config(source: str | Sequence[str], overrides: Sequence[str] = ()) -> RunConfig:
    """Load, merge and check a config.

    Args:
        source: a preset's name (`runs/quickstart`) or a path, or several of them; later ones win.
        overrides: `key.sub=value` with the value in YAML; lists by index (`data.phases.0.length`);
            `key=null` resets an option to its default.

    Raises:
        ConfigError: with every mistake found, each with file, line, key, the value seen and what
            is allowed.
    """
    return load_with_origins(source, overrides).config


def load_with_origins(source: str | Sequence[str], overrides: Sequence[str] = ()) -> Loaded:
    """As `load_config`, and say where each value comes from. Raises ConfigError."""
    sources = [source] if isinstance(source, str) else list(source)
    files: list[str] = []
    tree = Node({}, Origin("(defaults)"))
    for name in sources:
        tree = merge(tree, _read_extended(find_config(name), (), files))
    return _checked(tree, overrides, files)


def overridden(config: RunConfig, overrides: Sequence[str], *, source: str) -> RunConfig:
    """A config made in Python with overrides laid over it, checked.

    Args:
        config: as made.
        overrides: as `load_config` takes them.
        source: where the config came from, for messages.

    Raises:
        ConfigError: as `load_config`.
    """
    return _checked(read_document(to_yaml(config), source), overrides, []).config


def _checked(tree: Node, overrides: Sequence[str], files: list[str]) -> Loaded:
    problems: list[Problem] = []
    for override in overrides:
        try:
            tree = apply_override(tree, override)
        except ConfigError as error:
            problems.append(Problem(None, str(error)))
    tree = _without_resets(tree, ())
    config, invalid = validate(tree.plain())
    problems += invalid
    if config is not None:
        problems += check_config(config, _set_on_command_line(tree))
    if problems or config is None:
        raise ConfigError(_report(problems, tree))
    return Loaded(config, _origins(tree, ()), files)


def _read_extended(path: str, chain: tuple[str, ...], files: list[str]) -> Node:
    """A file merged over what it extends."""
    try:
        own = read_document(storage.read_bytes(path), path)
    except StorageError as error:
        raise ConfigError(f"{error}") from error
    named = own.value.pop("extends", None)
    tree = Node({}, own.origin)
    for name, origin in _extended_names(named):
        base = find_config(name, beside=path, named_by=f"{origin}: extends")
        if base in (*chain, path):
            raise ConfigError(f"{origin}: extends itself: {' → '.join([*chain, path, base])}")
        tree = merge(tree, _read_extended(base, (*chain, path), files))
    files.append(path)
    return merge(tree, own)


def _extended_names(named: Node | None) -> list[tuple[str, Origin]]:
    if named is None or named.value is None:
        return []
    items = named.value if isinstance(named.value, list) else [named]
    for item in items:
        if not isinstance(item.value, str):
            raise ConfigError(
                f"{item.origin}: extends: expected the name of a config or a list of names, "
                f"but this is {describe(item.value)}"
            )
    return [(item.value, item.origin) for item in items]


def _without_resets(node: Node, path: tuple[str | int, ...]) -> Node:
    """Drop keys set to null where null is no value of its own: they fall back to the default."""
    if isinstance(node.value, list):
        items = [_without_resets(child, (*path, i)) for i, child in enumerate(node.value)]
        return Node(items, node.origin)
    if not isinstance(node.value, dict):
        return node
    kept = {}
    for key, child in node.value.items():
        place = place_at((*path, key))
        if child.value is None and place is not None and not place.nullable:
            continue
        kept[key] = _without_resets(child, (*path, key))
    return Node(kept, node.origin)


def _set_on_command_line(tree: Node) -> set[str]:
    return {key for key, where in _origins(tree, ()).items() if where.startswith(COMMAND_LINE)}


def _origins(node: Node, path: tuple[str, ...]) -> dict[str, str]:
    children = node.value.items() if isinstance(node.value, dict) else ()
    if isinstance(node.value, list):
        children = enumerate(node.value)  # type: ignore[assignment]
    found = {} if isinstance(node.value, dict) else {".".join(path): str(node.origin)}
    for key, child in children:
        found |= _origins(child, (*path, str(key)))
    return found


def _report(problems: list[Problem], tree: Node) -> str:
    """All problems, in the order of the files' lines."""
    located = []
    for index, problem in enumerate(problems):
        if problem.path is None:
            located.append((("", 0, index), problem.message))
            continue
        origin = tree.at(problem.path).origin
        key = ".".join(map(str, problem.path))
        where = origin.blame(key) if origin.source != "(defaults)" else key
        located.append(((origin.source, origin.line or 0, index), f"{where}: {problem.message}"))
    lines = list(dict.fromkeys(text for _, text in sorted(located)))
    if len(lines) == 1:
        return lines[0]
    return f"{len(lines)} mistakes in the config:\n" + "\n".join(f"  {line}" for line in lines)
