"""Groups of devices as compiled programs write them."""

from __future__ import annotations

import pytest

from maxlm.plan.reading.replica_groups import read_groups

MESH = "replica_groups=mesh['a'=2,'b'=2]"


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        (MESH + " {'a'}, dimensions={2}", [[0, 2], [1, 3]]),
        (MESH + ", device_ids=(0,2,1,3) {'a'}, dimensions={2}", [[0, 1], [2, 3]]),
        (MESH + ", device_ids=([2,2]T(1,0)) {'a'}, dimensions={2}", [[0, 1], [2, 3]]),
        (MESH + ", device_ids=([4]) {'b'}, dimensions={2}", [[0, 1], [2, 3]]),
    ],
)
def test_devices_of_a_compilers_mesh_may_lie_in_another_order(written, groups):
    assert read_groups(written, 4).tolist() == groups
