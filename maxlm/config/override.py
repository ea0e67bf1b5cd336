"""Overrides on the command line: `key.sub=value` laid over a tree of nodes."""

from __future__ import annotations

from typing import get_origin

from maxlm.config.document import COMMAND_LINE, Node, Origin, merge, read_value
from maxlm.config.options import place_at
from maxlm.errors import ConfigError


def apply_override(tree: Node, override: str) -> Node:
    """The tree with one override applied; the tree that came in stays as it is.

    Args:
        tree: the merged configs.
        override: `key.sub=value`; the value is YAML, a number in the key is an index of a list.

    Raises:
        ConfigError: no `=`, an empty key, a value that is not YAML, or an index outside its list.
    """
    key, equals, text = override.partition("=")
    origin = Origin(COMMAND_LINE + override)
    key = key.strip()
    path = key.split(".")
    if not equals or not all(path):
        raise ConfigError(
            f"{origin}: an override is KEY=VALUE, such as train.duration='2000 steps'"
        )
    return _with(tree, path, (), _value(path, text, origin), origin)


def _value(path: list[str], text: str, origin: Origin) -> Node:
    """The value, as text where the option is text: `name=2024` needs no quotes."""
    place = place_at(tuple(path))
    if place is not None and place.core is str and text.strip().lower() not in ("", "null", "~"):
        try:
            node = read_value(text, origin)
        except ConfigError:
            return Node(text, origin)
        return node if isinstance(node.value, str) else Node(text, origin)
    return read_value(text, origin)


def _with(node: Node, rest: list[str], done: tuple[str, ...], value: Node, origin: Origin) -> Node:
    if not rest:
        return merge(node, value)
    head, *tail = rest
    if isinstance(node.value, list) or _is_new_list(node, done):
        items = list(node.value) if isinstance(node.value, list) else []
        index = _index(head, items, done, origin)
        child = items[index] if index < len(items) else Node(None, origin)
        items[index : index + 1] = [_with(child, tail, (*done, head), value, origin)]
        return Node(items, node.origin)
    children = dict(node.value) if isinstance(node.value, dict) else {}
    child = children.get(head, Node(None, origin))
    children[head] = _with(child, tail, (*done, head), value, origin)
    return Node(children, node.origin if isinstance(node.value, dict) else origin)


def _is_new_list(node: Node, path: tuple[str, ...]) -> bool:
    place = place_at(path)
    return node.value is None and place is not None and get_origin(place.core) is list


def _index(text: str, items: list[Node], path: tuple[str, ...], origin: Origin) -> int:
    """An index into a list; the first one past its end appends."""
    if text.isdecimal() and int(text) <= len(items):
        return int(text)
    raise ConfigError(
        f"{origin}: '{text}' is no index of {'.'.join(path)}, which has {len(items)} "
        f"{'item' if len(items) == 1 else 'items'}; use 0 to {len(items)} (the last one appends)"
    )
