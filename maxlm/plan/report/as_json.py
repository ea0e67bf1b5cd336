"""A `Plan` as JSON text and back, for scripts, for the store of results, and for pages made later.

The schema is that of `maxlm.plan.result`: every field under its own name, with units as there, and a
`format_version`. Derived figures (`total`, `fits`, `compute`, `tokens_per_second`) are written too, so
that a reader need not know how they are made; they are ignored when read.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any

from maxlm.errors import DataError
from maxlm.plan.result import Memory, Plan, StepTime

FORMAT_VERSION = 1
_DERIVED: dict[type, tuple[str, ...]] = {
    Memory: ("total", "fits"),
    StepTime: ("compute", "total"),
    Plan: ("tokens_per_second",),
}


def plan_json(plan: Plan) -> str:
    """The plan as one indented JSON text, keys in the order of the dataclasses.

    Raises:
        ValueError: a figure is not finite, which no plan should hold.
    """
    return json.dumps(plan_dict(plan), indent=2, ensure_ascii=False, allow_nan=False)


def plan_dict(plan: Plan) -> dict[str, Any]:
    """The plan as plain dicts, lists, strings and numbers."""
    return {"format_version": FORMAT_VERSION, **_plain(plan)}


def read_plan(text: str, where: str = "plan") -> Plan:
    """The plan of a JSON text that `plan_json` wrote.

    Args:
        text: of one plan.
        where: it came from, for the error.

    Raises:
        DataError: it is no JSON, of another format version, or a field is missing, unknown or of
            another type.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{where} holds {type(value).__name__}, not the object of a plan")
    version = value.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise DataError(
            f"{where} has format_version {version!r}, this maxlm reads {FORMAT_VERSION}: make the "
            "plan again"
        )
    return _read(Plan, value, where)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value)]
        return {n: _plain(getattr(value, n)) for n in (*names, *_DERIVED.get(type(value), ()))}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def _read(wanted: Any, value: Any, where: str) -> Any:
    """`value` as the type `wanted`, whole numbers taken as floats where floats are wanted."""
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):
        if value is None and types.NoneType in inner:
            return None
        (kept,) = (one for one in inner if one is not types.NoneType)
        return _read(kept, value, where)
    if dataclasses.is_dataclass(wanted):
        return _read_fields(wanted, value, where)
    if origin in (list, tuple) and isinstance(value, list):
        return origin(_read(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _read(inner[1], item, f"{where}.{key}") for key, item in value.items()}
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # A bool is an int to Python, but not to a reader of the file.
    if origin is None and isinstance(value, wanted) and isinstance(value, bool) == (wanted is bool):
        return value
    name = getattr(wanted, "__name__", str(wanted))
    raise DataError(f"{where} is {value!r}, where {origin.__name__ if origin else name} belongs")


def _read_fields(wanted: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise DataError(f"{where} is {value!r}, where an object belongs")
    fields = {f.name: f for f in dataclasses.fields(wanted)}
    unknown = set(value) - set(fields) - set(_DERIVED.get(wanted, ()))
    missing = [name for name in fields if name not in value]
    if unknown or missing:
        told = [f"lacks {', '.join(missing)}"] if missing else []
        told += [f"holds unknown {', '.join(sorted(unknown))}"] if unknown else []
        raise DataError(f"{where} {' and '.join(told)}: make the plan again")
    hints = typing.get_type_hints(wanted)
    return wanted(**{n: _read(hints[n], value[n], f"{where}.{n}") for n in fields})
