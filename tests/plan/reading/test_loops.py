"""How often loops run, by their conditions."""

import pytest

from maxlm.errors import PlanError
from maxlm.plan.reading.constants import Scope
from maxlm.plan.reading.hlo import parse_program
from maxlm.plan.reading.loops import trip_count
from tests.plan.program_text import PROGRAM


def trips(text):
    program = parse_program(text)
    scope = Scope(program, program.computations[program.entry])
    return trip_count(scope.computation.by_name["while.1"], scope)


def changed(*replacements):
    text = PROGRAM
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    return text


def test_a_counter_against_a_constant():
    assert trips(PROGRAM) == 3


@pytest.mark.parametrize(
    ("replacements", "expected"),
    [
        ([("direction=LT", "direction=LE")], 4),
        ([("direction=LT", "direction=NE")], 3),
        ([("compare(%j, %limit), direction=LT", "compare(%limit, %j), direction=GT")], 3),
        ([("%zero = s32[] constant(0)", "%zero = s32[] constant(1)")], 2),
        ([("%zero = s32[] constant(0)", "%zero = s32[] constant(5)")], 0),
        ([("%one = s32[] constant(1)", "%one = s32[] constant(2)")], 2),
        (
            [
                ("%zero = s32[] constant(0)", "%zero = s32[] constant(9)"),
                ("%one = s32[] constant(1)", "%one = s32[] constant(-2)"),
                ("direction=LT", "direction=GE"),
            ],
            4,
        ),
    ],
)
def test_other_directions_starts_and_steps(replacements, expected):
    assert trips(changed(*replacements)) == expected


def test_a_stated_count_is_taken():
    stated = 'body=%body, backend_config={"known_trip_count":{"n":"12"}}'
    assert trips(changed(("body=%body", stated))) == 12


def test_a_comparison_inside_a_fusion():
    fused = """%less (l0: s32[], l1: s32[]) -> pred[] {
  %l0 = s32[] parameter(0)
  %l1 = s32[] parameter(1)
  ROOT %lt.2 = pred[] compare(%l0, %l1), direction=LT
}

%condition (c"""
    old = "ROOT %lt = pred[] compare(%j, %limit), direction=LT"
    new = "ROOT %lt = pred[] fusion(%j, %limit), kind=kLoop, calls=%less"
    assert trips(changed((old, new), ("%condition (c", fused))) == 3


def test_a_limit_that_the_state_carries_unchanged():
    # The limit is the third element of a state of the counter, the array and it.
    text = """HloModule m, is_scheduled=true

%body (p: (s32[], f32[8], s32[])) -> (s32[], f32[8], s32[]) {
  %p = (s32[], f32[8]{0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %n = s32[] get-tuple-element(%p), index=2
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %t = (s32[], f32[8]{0}, s32[]) tuple(%next, %x, %n)
}

%condition (c: (s32[], f32[8], s32[])) -> pred[] {
  %c = (s32[], f32[8]{0}, s32[]) parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  %m = s32[] get-tuple-element(%c), index=2
  ROOT %lt = pred[] compare(%j, %m), direction=LT
}

ENTRY %main (a: f32[8], b: s32[]) -> (s32[], f32[8], s32[]) {
  %a = f32[8]{0} parameter(0)
  %b = s32[] parameter(1)
  %zero = s32[] constant(0)
  %limit = s32[] constant(6)
  %twice = s32[] add(%limit, %limit)
  %copy.1 = s32[] copy(%twice)
  %state = (s32[], f32[8]{0}, s32[]) tuple(%zero, %a, %copy.1)
  ROOT %while.1 = (s32[], f32[8]{0}, s32[]) while(%state), condition=%condition, body=%body
}
"""
    assert trips(text) == 12
    with pytest.raises(PlanError, match="depends on data"):
        trips(text.replace("tuple(%zero, %a, %copy.1)", "tuple(%zero, %a, %b)"))
    with pytest.raises(PlanError, match="depends on data"):  # the limit moves with the counter
        trips(text.replace("tuple(%next, %x, %n)", "tuple(%next, %x, %next)"))


def test_a_length_that_depends_on_data_is_an_error_that_names_the_loop():
    with pytest.raises(PlanError, match=r"how often does the loop while\.1 run"):
        trips(changed(("%limit = s32[]{:T(128)} constant(3)", "%limit = s32[] custom-call()")))


def test_attentions_loops_over_keys_run_as_often_as_their_scope_says():
    named = 'body=%body, metadata={op_name="jit(step)/attention/expected_turns_4.5/while"}'
    data = ("%limit = s32[]{:T(128)} constant(3)", "%limit = s32[] custom-call()")
    assert trips(changed(data, ("body=%body", named))) == 4.5
    inside = named.replace("turns_4.5/while", "turns_4.5/while/body/sort/while")
    with pytest.raises(PlanError, match="depends on data"):
        trips(changed(data, ("body=%body", inside)))


def test_a_loop_that_never_ends_is_an_error():
    with pytest.raises(PlanError, match="how often"):
        trips(changed(("%one = s32[] constant(1)", "%one = s32[] constant(-1)")))
