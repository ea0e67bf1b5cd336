"""Shipped runs for pods: what their names say."""

import pytest

from maxlm.errors import ConfigError
from maxlm.plan.pods import pods, topology_in_name


@pytest.mark.parametrize(
    ("name", "topology", "devices"),
    [
        ("runs/llama3-8b-v5p-128", "v5p-128", 64),
        ("runs/llama3-8b-16xv5p-128", "16 × v5p-128", 1024),
        ("my/llama2-7b-v5e-64.yaml", "v5e-64", 64),
        ("runs/llama3-8b-h100x64", "h100x64", 64),
    ],
)
def test_a_name_that_ends_with_a_topology_names_it(name, topology, devices):
    found = topology_in_name(name)
    assert (found.name, found.num_devices) == (topology, devices)


@pytest.mark.parametrize("name", ["runs/quickstart", "models/qwen3-30b-a3b", "runs/gpt2-124m"])
def test_other_names_name_none(name):
    assert topology_in_name(name) is None


def test_a_slice_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="nearest"):
        topology_in_name("runs/llama3-8b-v5p-100")


def test_jobs_of_every_kind_are_shipped():
    kinds = {(topology.chip.name, topology.slices > 1) for topology in pods().values()}
    assert kinds >= {("v5p", False), ("v6e", False), ("v5e", False), ("v5p", True), ("h100", False)}
