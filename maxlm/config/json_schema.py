"""The JSON Schema of a config file, with which editors complete and check."""

from __future__ import annotations

from typing import Any

from maxlm.config.schema import RunConfig


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of what may stand in a config file.

    A file may also name what it extends, and may reset any option with null.
    """
    schema = RunConfig.model_json_schema()
    for part in (schema, *schema.get("$defs", {}).values()):
        # Required keys may come from the file that is extended.
        part.pop("required", None)
        for name, rule in part.get("properties", {}).items():
            part["properties"][name] = _nullable(rule)
    name = {"type": "string", "description": "a preset's name or a path"}
    schema["properties"]["extends"] = {
        "anyOf": [name, {"type": "array", "items": name}],
        "description": "Configs that this one builds on; later ones win, this file over all.",
    }
    schema["title"] = "maxlm config"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _nullable(rule: dict[str, Any]) -> dict[str, Any]:
    null = {"type": "null"}
    if null in rule.get("anyOf", ()):
        return rule
    kept: dict[str, Any] = {
        key: rule[key] for key in ("description", "default", "title") if key in rule
    }
    inner = {key: value for key, value in rule.items() if key not in kept}
    return {"anyOf": [inner, null], **kept}
