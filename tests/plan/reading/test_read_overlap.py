"""What of an asynchronous collective is waited for: by what its own stretch of the schedule computes."""

import pytest

from maxlm.parallel.chips import CHIPS
from maxlm.plan.reading.read import read_program

V5P = CHIPS["v5p"]
# An all-gather of 8 devices that the SparseCore runs, with one fusion between start and end.
PROGRAM = """HloModule step, is_scheduled=true, num_partitions=8

%on_sparse_core (p.1: bf16[1024,1024]) -> bf16[8192,1024] {{
  %p.1 = bf16[1024,1024]{{1,0}} parameter(0)
  ROOT %all-gather.1 = bf16[8192,1024]{{1,0}} all-gather(%p.1), channel_id=1, replica_groups=[1,8]<=[8], dimensions={{0}}, use_global_device_ids=true
}}, execution_thread="sparsecore"

%fused (p.2: f32[8,128]) -> f32[8,128] {{
  ROOT %p.2 = f32[8,128]{{1,0}} parameter(0)
}}

ENTRY %main (a: bf16[1024,1024], b: f32[8,128]) -> f32[8,128] {{
  %a = bf16[1024,1024]{{1,0}} parameter(0)
  %b = f32[8,128]{{1,0}} parameter(1)
  %gather.call-start = ((), (), s32[8]) custom-call-start(), custom_call_target="TODO", called_computations={{%on_sparse_core}}
  %gather.call-update = ((bf16[1024,1024]), bf16[8192,1024], s32[8]) custom-call-update(%gather.call-start, %a)
  %inside = f32[8,128]{{1,0}} fusion(%b), kind=kLoop, calls=%fused, backend_config={{"estimated_cycles":"{inside}"}}
  %gather.call-done = bf16[8192,1024]{{1,0}} custom-call-done(%gather.call-update)
  ROOT %after = f32[8,128]{{1,0}} fusion(%inside), kind=kLoop, calls=%fused, backend_config={{"estimated_cycles":"{after}"}}
}}
"""
WIRE_BYTES = 1024 * 1024 * 2 * 7
SENDING = WIRE_BYTES / (3 * V5P.link_bandwidth)


def read(inside, after):
    return read_program(PROGRAM.format(inside=inside, after=after), chip=V5P)


def test_a_collective_on_the_sparse_core_is_found_and_overlapped():
    (found,) = read(inside=100, after=100).collectives
    assert (found.kind, found.size, found.is_overlapped) == ("all-gather", 8, True)
    assert found.wire_bytes == WIRE_BYTES
    assert found.seconds == pytest.approx(SENDING)


def test_work_between_start_and_end_hides_it():
    time = read(inside=round(2 * SENDING * V5P.clock), after=0).time
    assert time.exposed == 0
    assert time.overlapped == pytest.approx(SENDING)


def test_work_after_its_end_does_not_hide_it():
    time = read(inside=0, after=round(2 * SENDING * V5P.clock)).time
    assert time.exposed == pytest.approx(SENDING)
    assert time.total == pytest.approx(3 * SENDING, rel=1e-4)


def test_it_hides_as_much_as_runs_meanwhile():
    time = read(inside=round(0.25 * SENDING * V5P.clock), after=10**6).time
    assert time.exposed == pytest.approx(0.75 * SENDING, rel=1e-3)


def test_start_and_end_themselves_are_not_charged():
    assert [o.name for o in read(inside=10, after=20).operations] == ["after", "inside"]
