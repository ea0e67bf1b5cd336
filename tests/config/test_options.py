"""Options are few, described, and documented as they are."""

import json
from pathlib import Path

import pytest

from maxlm.config.json_schema import json_schema
from maxlm.config.options import all_options, place_at
from maxlm.config.reference import BEGIN, END, options_table, write_table
from maxlm.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_there_are_fewer_than_150_options():
    assert len(all_options()) < 150


def test_every_option_has_a_description_of_a_sentence():
    for option in all_options():
        assert len(option.description) > 5, option.key
        assert option.description.endswith("."), option.key


def test_the_documentation_has_the_current_options():
    text = DOCS.read_text(encoding="utf-8")
    table = text.partition(BEGIN)[2].partition(END)[0].strip()
    assert table == options_table().strip(), (
        "run: maxlm config options --write docs/configuration.md"
    )


def test_the_table_is_written_between_its_marks_only(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nstale row\n{END}\nafter\n", encoding="utf-8")
    write_table(page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{BEGIN}\n") and text.endswith(f"{END}\nafter\n")
    assert "stale row" not in text and "`model.num_layers`" in text
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(ConfigError, match="has no lines"):
        write_table(page)


def test_the_schema_for_editors_describes_every_option():
    schema = json.loads(json.dumps(json_schema()))
    definitions = schema["$defs"]

    def section_of(rule):
        for part in (rule, *rule.get("anyOf", ())):
            if "$ref" in part:
                return definitions[part["$ref"].rsplit("/", 1)[-1]]
            for inner in (part.get("additionalProperties"), part.get("items")):
                if isinstance(inner, dict) and "$ref" in inner:
                    return definitions[inner["$ref"].rsplit("/", 1)[-1]]
        return None

    for option in all_options():
        rule = schema
        for part in option.key.split("."):
            if part in ("*", "N"):
                continue
            rule = (section_of(rule) or rule)["properties"][part]
        assert rule["description"] == option.description, option.key


def test_the_schema_takes_durations_as_text_or_number_and_null_everywhere():
    schema = json_schema()
    duration = schema["$defs"]["TrainConfig"]["properties"]["duration"]
    kinds = json.dumps(duration)
    assert '"string"' in kinds and '"number"' in kinds and '"null"' in kinds
    layers = schema["$defs"]["ModelConfig"]["properties"]["num_layers"]
    assert {"type": "null"} in layers["anyOf"]
    assert "extends" in schema["properties"]
    assert schema["$defs"]["ModelConfig"]["additionalProperties"] is False


def test_a_place_is_known_for_every_option_and_for_nothing_else():
    for option in all_options():
        path = tuple(0 if p == "N" else p for p in option.key.split("."))
        assert place_at(path) is not None, option.key
    assert place_at(("model", "num_layer")) is None
    assert place_at(("model", "num_layers", "x")) is None
