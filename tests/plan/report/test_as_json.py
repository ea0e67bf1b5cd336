"""Plans as JSON: what is written comes back equal, and what is damaged is refused by name."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxlm.errors import DataError
from maxlm.plan.report.as_json import FORMAT_VERSION, plan_dict, plan_json, read_plan
from maxlm.plan.result import Collective, Cost, Memory, Operation, Plan, StepTime
from tests.plan.made_plans import ALL, fitting

finite = st.floats(allow_nan=False, allow_infinity=False)
count = st.integers(0, 1 << 60)
text = st.text(max_size=20)


def maybe(strategy):
    return st.none() | strategy


plans = st.builds(
    Plan,
    mesh=st.dictionaries(text, count, max_size=3),
    model_flops=finite,
    mfu=maybe(finite),
    memory=maybe(st.builds(Memory, **{n: count for n in Memory.__dataclass_fields__})),
    time=maybe(
        st.builds(StepTime, **{n: st.floats(1e-6, 1e6) for n in StepTime.__dataclass_fields__})
    ),
    cost=st.builds(Cost, maybe(finite), maybe(finite), maybe(finite), maybe(finite), text),
    operations=st.lists(st.builds(Operation, seconds=finite), max_size=2),
    collectives=st.lists(
        st.builds(
            Collective,
            axes=st.lists(text, max_size=3).map(tuple),
            payload_bytes=finite,
            wire_bytes=finite,
            seconds=finite,
        ),
        max_size=2,
    ),
    notes=st.lists(text, max_size=2),
    versions=st.dictionaries(text, text, max_size=2),
    compile_seconds=maybe(finite),
)


@settings(max_examples=60)
@given(plans)
def test_any_plan_comes_back_equal(plan):
    assert read_plan(plan_json(plan)) == plan


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_made_plans_come_back_equal(make):
    assert read_plan(plan_json(make())) == make()


def test_derived_figures_are_written_and_not_read():
    value = plan_dict(fitting())
    assert value["format_version"] == FORMAT_VERSION
    assert value["memory"]["total"] == fitting().memory.total and value["memory"]["fits"] is True
    assert value["time"]["total"] == fitting().time.total
    assert value["tokens_per_second"] == fitting().tokens_per_second
    value["memory"]["total"] = 1
    assert read_plan(json.dumps(value)) == fitting()


def test_whole_numbers_are_taken_where_floats_belong():
    value = plan_dict(fitting()) | {"model_flops": 3}
    plan = read_plan(json.dumps(value))
    assert plan.model_flops == 3.0 and isinstance(plan.model_flops, float)


def test_the_schema_of_version_1_is_as_documented():
    """A renamed or removed field needs a new FORMAT_VERSION, and docs/plan_output.md changed."""
    value = plan_dict(fitting())
    assert list(value) == [
        "format_version", "config", "topology", "method", "mesh", "chips", "tokens_per_step",
        "model_flops", "mfu", "memory", "time", "cost", "operations", "collectives", "notes",
        "versions", "compile_seconds", "rows_at_once", "tokens_per_second",
    ]  # fmt: skip
    assert list(value["memory"]) == [
        "parameters", "optimizer", "gradients", "activations", "temporaries", "other", "host",
        "capacity", "total", "fits",
    ]  # fmt: skip
    assert list(value["time"]) == [
        "matmuls", "elementwise", "kernels", "blocking", "overlapped", "exposed", "bubble",
        "compute", "total",
    ]  # fmt: skip
    assert list(value["cost"]) == ["tokens", "days", "chip_hours", "dollars", "price"]
    assert list(value["operations"][0]) == [
        "name", "kind", "times", "seconds", "source", "module", "shape", "estimated",
    ]  # fmt: skip
    assert list(value["collectives"][0]) == [
        "name", "kind", "axes", "size", "times", "payload_bytes", "wire_bytes", "seconds",
        "is_overlapped", "network", "source",
    ]  # fmt: skip


def broken(path: str, value: object) -> str:
    whole = plan_dict(fitting())
    inner = whole
    *above, last = path.split(".")
    for key in above:
        inner = inner[int(key)] if key.isdigit() else inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return json.dumps(whole)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("format_version", 2, "format_version 2"),
        ("chips", ..., "lacks chips"),
        ("chip", 3, "unknown chip"),
        ("chips", "many", "p.json.chips is 'many', where int belongs"),
        ("chips", True, "p.json.chips is True"),
        ("memory.host", 1.5, "p.json.memory.host is 1.5"),
        ("memory", 3, "p.json.memory is 3, where an object belongs"),
        ("operations.1.seconds", None, r"p.json.operations\[1\].seconds is None"),
        ("collectives.0.axes", "fsdp", r"p.json.collectives\[0\].axes is 'fsdp'"),
    ],
)
def test_a_damaged_plan_is_refused_with_the_place(path, value, told):
    with pytest.raises(DataError, match=told):
        read_plan(broken(path, value), "p.json")


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null"])
def test_what_is_no_plan_is_refused(content):
    with pytest.raises(DataError):
        read_plan(content)
