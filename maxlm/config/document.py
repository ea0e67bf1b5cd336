"""YAML read into a tree that remembers where each value was written.

In comes the text of a file or of an override; out goes a `Node`, whose origin survives merging, so
that an error about a value names the file and line that set it. Scalars follow YAML 1.2: `3e-4` is
a number, `no` and `on` are words.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import yaml

from maxlm.errors import ConfigError

# A config has hundreds of values; a file that unfolds to more is a mistake (or aliases of aliases).
MAX_NODES = 100_000
COMMAND_LINE = "command line: "


@dataclass(frozen=True)
class Origin:
    """Where a value was written: a line of a file, or an override on the command line."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source

    def blame(self, key: str) -> str:
        """How an error about `key` begins; an override that names the key itself is enough."""
        return f"{self}" if self.source.startswith(f"{COMMAND_LINE}{key}=") else f"{self}: {key}"


@dataclass
class Node:
    """A scalar, a list of nodes or a mapping of nodes, and the origin of its key."""

    value: Any
    origin: Origin

    def plain(self) -> Any:
        """The same without origins."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def at(self, path: tuple[str | int, ...]) -> Node:
        """The node at `path`, or the nearest one above it."""
        node = self
        for part in path:
            inner = node.value
            if isinstance(inner, dict) and part in inner:
                node = inner[str(part)]
            elif isinstance(inner, list) and part in range(len(inner)):
                node = inner[int(part)]
            else:
                break
        return node


def read_document(text: bytes | str, source: str) -> Node:
    """Read the text of a config file, whose root must be a mapping.

    Raises:
        ConfigError: invalid YAML or UTF-8, a duplicate key, a tag, or no mapping at the root.
    """
    node = _read(text, source, Origin(source, 1))
    if node.value is None:
        node.value = {}
    if not isinstance(node.value, dict):
        raise ConfigError(
            f"{source}:1: a config is a mapping of sections, such as 'model:', "
            f"but this is {describe(node.value)}"
        )
    return node


def read_value(text: str, origin: Origin) -> Node:
    """Read an override's value; every node in it has the override's origin.

    Raises ConfigError when it is not YAML.
    """
    return _read(text, None, origin)


def merge(below: Node, above: Node) -> Node:
    """The tree in which `above` wins: mappings merge key by key, lists and scalars replace."""
    if not isinstance(below.value, dict) or not isinstance(above.value, dict):
        return above
    merged = dict(below.value)
    for key, child in above.value.items():
        merged[key] = merge(merged[key], child) if key in merged else child
    return Node(merged, above.origin)


def describe(value: Any) -> str:
    """A value as an error shows it: its kind and, where it is short, itself."""
    if value is None:
        return "empty (null)"
    if isinstance(value, dict):
        return f"a mapping with the keys {', '.join(map(str, value)) or '(none)'}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, bool):
        return f"'{str(value).lower()}'"
    if isinstance(value, str):
        return f"the text '{value if len(value) <= 60 else value[:57] + '…'}'"
    return f"{value}"


class ConfigDumper(yaml.SafeDumper):
    """Writes scalars so that `read_document`, and readers of YAML 1.1 too, read them as they are.

    What either of them would take for a number or a truth value is quoted.
    """

    def ignore_aliases(self, data: Any) -> bool:
        """Write every value out, also one that occurs twice."""
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Quote line breaks of Unicode with escapes: unescaped, a reader folds them into spaces."""
        style = '"' if any(mark in data for mark in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


ConfigDumper.add_representer(str, ConfigDumper.represent_str)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (none of YAML 1.1's)


_NUMBER_START = list("-+0123456789.")
for _tag, _pattern, _first in [
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+", _NUMBER_START),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?",
        _NUMBER_START,
    ),
]:
    for _class in (_Loader, ConfigDumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
        )


def _read(text: bytes | str, source: str | None, origin: Origin) -> Node:
    try:
        # Decoding here gives the line of a bad byte, which PyYAML does not.
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        root = yaml.compose(decoded, Loader=_Loader)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{source}:{line}: not UTF-8 text: byte 0x{error.object[error.start]:02x}"
        ) from error
    except yaml.reader.ReaderError as error:
        line = decoded[: error.position].count("\n") + 1
        where = Origin(source, line) if source else origin
        raise ConfigError(
            f"{where}: not YAML: it has the control character U+{int(error.character):04X}"
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = Origin(source, mark.line + 1) if source and mark else origin
        what = ": ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(f"{where}: not YAML: {what}") from error
    except RecursionError as error:
        raise ConfigError(f"{origin}: nested too deeply") from error
    if root is None:
        return Node(None, origin)
    return _Reader(source, origin).node(root, origin)


class _Reader:
    """Turns PyYAML's nodes into ours."""

    def __init__(self, source: str | None, origin: Origin):
        self._source = source
        self._origin = origin
        self._open: set[int] = set()
        self._count = 0

    def node(self, raw: yaml.Node, origin: Origin) -> Node:
        self._count += 1
        if id(raw) in self._open or self._count > MAX_NODES:
            raise ConfigError(f"{self._where(raw)}: an alias (*name) that unfolds without end")
        if isinstance(raw, yaml.ScalarNode):
            return Node(self._scalar(raw), origin)
        self._open.add(id(raw))
        try:
            if isinstance(raw, yaml.SequenceNode):
                return Node([self.node(item, self._where(item)) for item in raw.value], origin)
            assert isinstance(raw, yaml.MappingNode)
            return Node(self._mapping(raw), origin)
        finally:
            self._open.discard(id(raw))

    def _mapping(self, raw: yaml.MappingNode) -> dict[str, Node]:
        mapping: dict[str, Node] = {}
        for raw_key, raw_value in raw.value:
            where = self._where(raw_key)
            if not isinstance(raw_key, yaml.ScalarNode):
                raise ConfigError(f"{where}: a key must be a word, not a list or a mapping")
            key = raw_key.value
            if key == "<<":
                raise ConfigError(f"{where}: '<<' is not read here; inherit with 'extends:'")
            if key in mapping:
                raise ConfigError(
                    f"{where}: '{key}' is set twice (first on line {mapping[key].origin.line}); "
                    "keep one"
                    if self._source
                    else f"{where}: '{key}' is set twice; keep one"
                )
            mapping[key] = self.node(raw_value, where)
        return mapping

    def _scalar(self, raw: yaml.ScalarNode) -> Any:
        text, tag = raw.value, raw.tag.removeprefix("tag:yaml.org,2002:")
        try:
            match tag:
                case "str":
                    return text
                case "null":
                    return None
                case "bool":
                    return text.lower() == "true"
                case "int":
                    return int(text, 16 if text.startswith("0x") else 10)
                case "float":
                    return _number(text)
        except ValueError as error:
            raise ConfigError(
                f"{self._where(raw)}: '{text}' is no number that can be used"
            ) from error
        raise ConfigError(f"{self._where(raw)}: the tag '{raw.tag}' is not read here; remove it")

    def _where(self, raw: yaml.Node) -> Origin:
        return Origin(self._source, raw.start_mark.line + 1) if self._source else self._origin


def _number(text: str) -> int | float:
    """`1e6` is a whole number to whoever writes it."""
    value = float(text)
    if math.isinf(value):
        raise ValueError("too large")
    return int(value) if value == value // 1 and abs(value) < 2**63 else value
