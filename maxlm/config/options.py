"""Every option with its key, type, default and description, read from the schema.

One list feeds the documentation, "did you mean", the count of options and the text of errors.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from maxlm.config.duration import EXAMPLES, Duration
from maxlm.config.schema import RunConfig, Section


@dataclass(frozen=True)
class Option:
    """One leaf of the schema.

    Attributes:
        key: dotted path; `*` stands for a name that the user gives, `N` for a list's index.
        type: what is allowed, in words.
        default: as it is written in YAML; `required` where there is none.
        description: one sentence.
    """

    key: str
    type: str
    default: str
    description: str


@cache
def all_options() -> tuple[Option, ...]:
    """All options in the order of the schema."""
    return tuple(_walk(RunConfig, ()))


@dataclass(frozen=True)
class Place:
    """What the schema says about a path."""

    annotation: Any
    field: FieldInfo | None

    @property
    def nullable(self) -> bool:
        """Whether `null` is a value here, rather than a reset to the default."""
        return types.NoneType in _members(self.annotation)

    @property
    def core(self) -> Any:
        """The annotation without `None`."""
        members = [m for m in _members(self.annotation) if m is not types.NoneType]
        return members[0] if len(members) == 1 else self.annotation

    @property
    def section(self) -> type[Section] | None:
        """The section that lies here, if one does."""
        core = self.core
        return core if isinstance(core, type) and issubclass(core, Section) else None

    def allowed(self) -> str:
        """What may be written here, in words."""
        return _type_text(self.core, self.field) + (" or null" if self.nullable else "")


def place_at(path: tuple[str | int, ...]) -> Place | None:
    """What the schema says about a path; None where it has nothing."""
    place = Place(RunConfig, None)
    for part in path:
        core = place.core
        if place.section is not None:
            field = place.section.model_fields.get(str(part))
            if field is None:
                return None
            place = Place(field.annotation, field)
        elif get_origin(core) is dict:
            place = Place(get_args(core)[1], None)
        elif get_origin(core) is list:
            place = Place(get_args(core)[0], None)
        else:
            return None
    return place


def _walk(section: type[BaseModel], prefix: tuple[str, ...]) -> Iterator[Option]:
    for name, field in section.model_fields.items():
        key = (*prefix, name)
        place = Place(field.annotation, field)
        inner = place.section
        if get_origin(place.core) is dict:
            inner = Place(get_args(place.core)[1], None).section
            key = (*key, "*") if inner else key
        elif get_origin(place.core) is list and Place(get_args(place.core)[0], None).section:
            inner, key = Place(get_args(place.core)[0], None).section, (*key, "N")
        if inner is not None:
            yield from _walk(inner, key)
            continue
        yield Option(".".join(key), place.allowed(), _default(field), field.description or "")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    return _scalar(value) if value != {} else "{}"


def _scalar(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _members(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(m for arg in get_args(annotation) for m in _members(arg))
    # Inside a union, DurationField keeps its Annotated wrapper.
    return (_bare(annotation),)


def _bare(annotation: Any) -> Any:
    return annotation.__origin__ if hasattr(annotation, "__metadata__") else annotation


def _type_text(core: Any, field: FieldInfo | None) -> str:
    if core is Duration:
        return "duration"
    if isinstance(core, type) and issubclass(core, StrEnum):
        return ", ".join(core)
    if isinstance(core, type) and issubclass(core, Section):
        return "section"
    if get_origin(core) is list:
        return f"list of: {_type_text(get_args(core)[0], None)}"
    if get_origin(core) is dict:
        return f"mapping of names to: {_type_text(get_args(core)[1], None)}"
    names = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    return names.get(core, str(core)) + (_bounds(field) if core in (int, float) else "")


def _bounds(field: FieldInfo | None) -> str:
    parts = []
    for rule in field.metadata if field else ():
        for sign, kind, name in (
            ("≥", annotated_types.Ge, "ge"),
            (">", annotated_types.Gt, "gt"),
            ("≤", annotated_types.Le, "le"),
            ("<", annotated_types.Lt, "lt"),
        ):
            if isinstance(rule, kind):
                parts.append(f"{sign} {getattr(rule, name)}")
    return " " + " and ".join(parts) if parts else ""


DURATION_HELP = f"a duration is a number and a unit, such as {EXAMPLES}"
