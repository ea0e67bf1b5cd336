"""Names of hardware and the slices that they mean, described to the TPU compiler as they are."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from maxlm.errors import ConfigError
from maxlm.parallel.chips import CHIPS
from maxlm.plan.topology import Topology, known_topologies, parse_topology, smallest_slice


@pytest.mark.parametrize(
    ("name", "shape", "chips", "devices"),
    [
        ("v4-8", (2, 2, 1), 4, 4),
        ("v4-32", (2, 2, 4), 16, 16),
        ("v5p-64", (2, 4, 4), 32, 32),
        ("v5p-128", (4, 4, 4), 64, 64),
        ("v5p-256", (4, 4, 8), 128, 128),
        ("v5p-2048", (8, 8, 16), 1024, 1024),
        ("v5p-12288", (16, 16, 24), 6144, 6144),
        ("v5e-64", (8, 8), 64, 64),
        ("v5litepod-16", (4, 4), 16, 16),
        ("v6e-256", (16, 16), 256, 256),
        ("tpu7x-128", (4, 4, 4), 64, 128),
        ("h100x64", (64,), 64, 64),
        ("h200x8", (8,), 8, 8),
    ],
)
def test_a_product_name_means_the_slice_of_its_tables(name, shape, chips, devices):
    found = parse_topology(name)
    assert sorted(found.shape) == sorted(shape)
    assert (found.num_chips, found.num_devices) == (chips, devices)


@pytest.mark.parametrize("text", ["2xv5p-128", "2 × v5p-128", "2x v5p:4x4x4", "2xV5P-128"])
def test_slices_stand_before_the_name(text):
    assert parse_topology(text) == parse_topology("v5p-128", slices=2)
    assert parse_topology(text).name == "2 × v5p-128"
    assert parse_topology(text).num_devices == 128


def test_every_topology_is_parsed_from_its_own_name():
    for text in ["v5p:4x4x16", "v5p-256", "3xv5e-16", "tpu7x-8", "h100x64", "v5p:2x2x1"]:
        found = parse_topology(text)
        assert parse_topology(found.name) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v5q-8", "did you mean 'v5p'"),
        ("trillium", "v6e-N (chips, 1 to 256)"),
        ("v5p", "how many chips"),
        ("v5p-100", "v5p-64 (2x4x4) and v5p-128 (4x4x4)"),
        ("v6e-512", "v6e-256 (16x16)"),
        ("v5p:3x4x4", "v5p:4x4x4"),
        ("v5e:4x4x4", "2 sides"),
        ("h100x12", "h100x8 and h100x16"),
        ("h100-8", "h100x8"),
        ("2xh100x8", "no slices"),
        ("v5px8", "v5p-N"),
        ("", "known are"),
    ],
)
def test_a_name_without_a_slice_says_what_there_is(text, said):
    with pytest.raises(ConfigError) as caught:
        parse_topology(text)
    assert said in str(caught.value)


def test_the_smallest_slice_of_so_many_chips_is_named():
    chips = {name: CHIPS[name] for name in ("v5e", "v5p", "h100")}
    assert smallest_slice(chips["v5e"], 51).name == "v5e-64"
    assert smallest_slice(chips["v5p"], 64).name == "v5p-128"
    assert smallest_slice(chips["h100"], 9).name == "h100x16"
    assert smallest_slice(chips["v5e"], 257) is None


def test_two_counts_of_slices_are_refused():
    with pytest.raises(ConfigError, match="has 2 slices, but --slices says 4"):
        parse_topology("2xv5p-128", slices=4)


def test_every_product_is_among_the_known():
    assert len(known_topologies()) == 10


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("v5p-128", (True, True, True)),
        ("v5p-64", (False, False, False)),
        ("v5e-256", (True, True, False)),
        ("v5e-128", (False, True, False)),
        ("v6e-64", (False, False, False)),
    ],
)
def test_a_side_is_a_ring_where_the_hardware_closes_it(name, wrap):
    assert parse_topology(name).wrap == wrap


@pytest.mark.parametrize(
    "name", ["v4-8", "v4-128", "v5p-2", "v5p-128", "v5e-1", "v6e-256", "tpu7x-8", "2xv5p-8"]
)
def test_the_compiler_describes_it_so(name):
    pytest.importorskip("libtpu")
    found = parse_topology(name)
    devices = found.devices()
    assert len(devices) == found.num_devices
    sides = [1 + max(side) for side in zip(*(d.coords for d in devices), strict=True)]
    assert math.prod(sides) == math.prod(found.shape)
    assert {d.num_cores for d in devices} == {found.chip.cores}
    assert len({getattr(d, "slice_index", 0) for d in devices}) == found.slices


def test_a_description_of_another_chip_is_refused(monkeypatch):
    pytest.importorskip("libtpu")
    from dataclasses import replace

    from maxlm.errors import ParallelError

    of_one_core = Topology(replace(CHIPS["v5p"], cores=1), (2, 2, 1))
    with pytest.raises(ParallelError, match="of 1 TensorCores are meant"):
        of_one_core.devices()


def test_a_missing_compiler_says_what_to_install(monkeypatch):
    import importlib.metadata

    from jax.experimental import topologies

    def absent(*_, **__):
        raise RuntimeError("no libtpu")

    def no_version(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(topologies, "get_topology_desc", absent)
    with pytest.raises(ConfigError, match=r"cannot be used: libtpu .* says: no libtpu"):
        parse_topology("v5e-4").devices()
    monkeypatch.setattr(importlib.metadata, "version", no_version)
    with pytest.raises(ConfigError, match=r"not installed .*pip install 'jax\[tpu\]=="):
        parse_topology("v5e-4").devices()


def test_reading_a_name_needs_no_jax():
    check = (
        "import sys; from maxlm.plan.topology import parse_topology as p; p('v5p-128').wrap; "
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.parametrize(("text", "slices"), [("0xv5p-128", None), ("v5p-128", 0)])
def test_no_slice_at_all_is_refused(text, slices):
    with pytest.raises(ConfigError, match="0 slices; at least 1 is needed"):
        parse_topology(text, slices=slices)
