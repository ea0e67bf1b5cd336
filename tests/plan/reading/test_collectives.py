"""Collectives: which devices, which mesh axes, bytes on a ring, and what runs meanwhile."""

import numpy as np
import pytest

from maxlm.errors import PlanError
from maxlm.parallel.chips import CHIPS
from maxlm.plan.reading.collectives import Wiring, find_collectives, ring_bytes, settle
from maxlm.plan.reading.hlo import parse_program
from maxlm.plan.reading.replica_groups import axes_of, is_across, read_groups
from tests.plan.program_text import PROGRAM

AXES = {"replica": 2, "fsdp": 4, "tensor": 2}
V5P = CHIPS["v5p"]


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
        ("channel_id=1", [[0, 1, 2, 3]]),
        ("source_target_pairs={{0,1},{1,0},{2,3},{3,2}}", [[0, 1], [2, 3]]),
        ("source_target_pairs={{0,1},{1,2}}", [[0, 1, 2]]),
    ],
)
def test_groups_in_all_notations(text, groups):
    assert read_groups(f", {text}, use_global_device_ids=true", 4).tolist() == groups


def test_an_unknown_notation_is_refused():
    with pytest.raises(PlanError, match="cannot read which devices"):
        read_groups("replica_groups=cube[3]", 4)


def test_groups_along_axes_get_their_names():
    ids = np.arange(16).reshape(2, 4, 2)
    assert axes_of(ids.transpose(0, 2, 1).reshape(-1, 4), AXES) == ("fsdp",)
    assert axes_of(ids.transpose(1, 0, 2).reshape(-1, 4), AXES) == ("replica", "tensor")
    assert axes_of(ids.reshape(1, 16), AXES) == ("replica", "fsdp", "tensor")


def test_a_part_of_an_axis_and_a_foreign_program_get_none():
    assert axes_of(np.array([[0, 2], [4, 6]]), AXES) == ()  # half of fsdp
    assert axes_of(np.array([[0, 1]]), {}) == ()
    assert axes_of(np.array([[0, 99]]), AXES) == ()


def test_groups_that_cross_slices():
    slices = [0] * 8 + [1] * 8
    assert is_across(np.array([[0, 8]]), slices)
    assert not is_across(np.array([[0, 7], [8, 15]]), slices)
    assert not is_across(np.array([[0, 8]]), [])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("all-gather", 75.0),
        ("reduce-scatter", 75.0),
        ("all-to-all", 75.0),
        ("all-reduce", 150.0),
        ("collective-permute", 100.0),
    ],
)
def test_bytes_that_a_device_sends_on_a_ring_of_four(kind, expected):
    assert ring_bytes(kind, 100.0, 4) == expected


def found_in(text, computation, name, *, wiring=None, times=1):
    program = parse_program(text)
    holder = program.computations[computation]
    wiring = wiring or Wiring(V5P, {"fsdp": 8}, [])
    return find_collectives(holder.by_name[name], holder, program, times, wiring)


def test_a_bare_collective_blocks():
    ((found,),) = (found_in(PROGRAM, "main", "all-gather.3", times=2),)
    gather = found.collective
    assert not gather.is_overlapped
    assert (gather.kind, gather.axes, gather.size, gather.times) == ("all-gather", ("fsdp",), 8, 2)
    assert gather.payload_bytes == 2 * 256 * 512 * 2
    assert gather.wire_bytes == gather.payload_bytes * 7 / 8
    assert gather.seconds == pytest.approx(gather.wire_bytes / (3 * 180e9))
    assert gather.source == "maxlm/model/mlp.py:57"


def test_a_start_overlaps_and_its_done_is_not_counted():
    text = PROGRAM.replace(
        "all-gather.3 = bf16[256,512]{1,0} all-gather(%w0)",
        "all-gather.3 = (bf16[32,512]{1,0}, bf16[256,512]{1,0}) all-gather-start(%w0)",
    )
    (found,) = found_in(text, "main", "all-gather.3")
    assert found.collective.is_overlapped
    assert found.collective.payload_bytes == 256 * 512 * 2


def test_an_all_reduce_of_which_a_device_keeps_its_part_is_a_reduce_scatter():
    (found,) = found_in(PROGRAM, "main", "fusion.4")
    assert found.collective.kind == "reduce-scatter"
    assert not found.collective.is_overlapped
    assert found.collective.wire_bytes == 1024 * 64 * 4 * 3 / 4
    assert found.collective.axes == ()  # half of the only axis


def test_one_that_goes_on_in_later_fusions_counts_once_where_it_begins():
    begin = found_in(PROGRAM, "main", "fusion.3")
    later = found_in(PROGRAM, "body", "fusion.2", times=3)
    (settled,) = settle([*begin, *later])
    assert settled.is_overlapped
    assert settled.times == 1
    assert settled.payload_bytes == 512 * 128 * 2


def test_one_whose_start_was_not_seen_counts_once():
    later = found_in(PROGRAM, "body", "fusion.2", times=3)
    assert [c.times for c in settle([*later, *later])] == [3]


def test_the_same_channel_of_another_collective_is_another():
    bare = found_in(PROGRAM.replace("channel_id=3", "channel_id=7"), "main", "all-gather.3")
    begin = found_in(PROGRAM, "main", "fusion.3")
    assert len(settle([*bare, *begin])) == 2


@pytest.mark.parametrize(
    ("opcode", "key"),
    [
        ("call-start", "to_apply=%offloaded"),
        ("custom-call-start", "called_computations={%offloaded}"),
        ("async-start", "calls=%offloaded"),
    ],
)
def test_one_that_another_core_runs_overlaps(opcode, key):
    called = """%offloaded (o: bf16[32,512]) -> bf16[256,512] {
  %o = bf16[32,512]{1,0} parameter(0)
  ROOT %all-gather.9 = bf16[256,512]{1,0} all-gather(%o), channel_id=4, replica_groups=[1,8]<=[8], dimensions={0}
}, execution_thread="sparsecore"

ENTRY"""
    text = PROGRAM.replace("ENTRY", called).replace(
        "  ROOT %fusion.4",
        "  %start = ((bf16[32,512]{1,0}), bf16[256,512]{1,0}, u32[]) "
        f'{opcode}(%w0), async_execution_thread="sparsecore", {key}\n  ROOT %fusion.4',
    )
    (found,) = found_in(text, "main", "start")
    assert found.collective.is_overlapped
    assert found.collective.payload_bytes == 256 * 512 * 2


SEND = (
    "  %token = token[] after-all()\n"
    "  %send.1 = (f32[1024,64]{1,0}, u32[], token[]) send(%g0, %token), channel_id=2, is_host_transfer=true, "
    'frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}\n'
    "  ROOT %fusion.4"
)


def test_what_slices_exchange_goes_over_the_network():
    text = PROGRAM.replace("  ROOT %fusion.4", SEND)
    wiring = Wiring(V5P, {"replica": 2, "fsdp": 4}, [0, 0, 0, 0, 1, 1, 1, 1])
    (found,) = found_in(text, "main", "send.1", wiring=wiring)
    reduce = found.collective
    assert (reduce.kind, reduce.size, reduce.axes) == ("all-reduce", 2, ("replica",))
    assert reduce.network and reduce.is_overlapped
    assert reduce.seconds == pytest.approx(1024 * 64 * 4 / V5P.network_bandwidth)


def test_without_a_mesh_the_number_of_slices_is_read_from_the_transfer():
    text = PROGRAM.replace("  ROOT %fusion.4", SEND.replace("{1,2}", "{1,2:4}"))
    (found,) = found_in(text, "main", "send.1", wiring=Wiring(V5P, {}, []))
    assert (found.collective.size, found.collective.axes) == (4, ())


def test_one_whose_groups_cross_slices_goes_over_the_network():
    wiring = Wiring(V5P, {"fsdp": 8}, [0, 0, 0, 0, 1, 1, 1, 1])
    (found,) = found_in(PROGRAM, "main", "all-gather.3", wiring=wiring)
    assert found.collective.network
    assert found.collective.seconds == pytest.approx(
        found.collective.wire_bytes / V5P.network_bandwidth
    )
