"""The text of a compiled program as instructions, shapes and lines of code."""

import pytest

from maxlm.errors import PlanError
from maxlm.plan.reading.hlo import parse_program
from maxlm.plan.reading.shapes import arrays, memory_bytes, shape_bytes
from tests.plan.program_text import PROGRAM


@pytest.fixture(scope="module")
def program():
    return parse_program(PROGRAM)


def test_the_entry_and_all_computations_are_found(program):
    assert program.entry == "main"
    assert program.num_partitions == 8
    assert set(program.computations) >= {"body", "condition", "fused_matmul", "sum"}
    assert len(program.computations["body"].instructions) == 15


def test_an_instruction_keeps_operands_shape_and_attributes(program):
    fusion = program.computations["body"].by_name["fusion.1"]
    assert (fusion.opcode, fusion.operands) == ("fusion", ("x", "w"))
    assert fusion.shape == "bf16[128,512]{1,0}"
    assert fusion.config("estimated_cycles") == "1000"
    assert fusion.op_name == "jit(step)/mlp/dot_general"
    assert [c.name for c in program.called(fusion)] == ["fused_matmul"]


def test_lines_that_a_kernels_metadata_continues_belong_to_it(program):
    kernel = program.computations["body"].by_name["splash_mha_fwd.7"]
    assert kernel.operands == ("next", "copy-done.1", "x")
    assert "block_q" in kernel.attributes and kernel.config("body") == "TUzvUg=="


def test_constants_and_parameters_keep_their_text(program):
    main = program.computations["main"]
    assert main.by_name["zero"].literal == "0"
    assert main.parameters[2].name == "g0"
    assert main.root.name == "fusion.4"


def test_the_innermost_line_of_maxlm_is_named(program):
    body = program.computations["body"].by_name
    assert program.frames.source(body["fusion.1"].attributes) == "maxlm/model/mlp.py:57"


def test_without_a_line_of_maxlm_the_innermost_is_named():
    foreign = parse_program(PROGRAM.replace("/maxlm/model/mlp.py", "/other/mlp.py"))
    attributes = foreign.computations["body"].by_name["fusion.1"].attributes
    assert foreign.frames.source(attributes) == "jax/nn.py:900"


def test_a_line_in_the_metadata_itself_is_taken_too(program):
    attributes = ', metadata={op_name="f" source_file="/a/maxlm/x.py" source_line=3}'
    assert program.frames.source(attributes) == "maxlm/x.py:3"
    assert program.frames.source("") == ""


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("bf16[128,256]{1,0:T(8,128)(2,1)}", 128 * 256 * 2),
        ("f32[]", 4),
        ("pred[7]{0}", 7),
        ("s4[9]{0}", 5),
        ("f8e4m3fn[16]{0}", 16),
        ("(bf16[2]{0}, (f32[3]{0}, s32[]), token[])", 4 + 12 + 4),
    ],
)
def test_bytes_of_a_shape(shape, size):
    assert shape_bytes(shape) == size


def test_arrays_on_the_chip_take_no_bytes_of_memory():
    shape = "(bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, f32[4]{0})"
    assert [array.space for array in arrays(shape)] == [1, 0]
    assert memory_bytes(shape) == 16


def test_other_text_is_refused_with_what_it_begins_with():
    with pytest.raises(PlanError, match=r"no line begins with ENTRY.*module @jit_step"):
        parse_program("module @jit_step {\n}\n")


def test_a_damaged_line_is_shown():
    with pytest.raises(PlanError, match=r"cannot read this line.*%fusion\.1 = bf16"):
        parse_program(PROGRAM.replace("{1,0} fusion(%x, %w)", "{1,0}"))
