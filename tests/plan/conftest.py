"""One small program, compiled once for all tests that read a compiled program."""

from __future__ import annotations

import pytest

SMALL = (
    "model.vocab_size=512",
    "model.head_dim=128",
    "data.batch_size=8",
    "data.length=256",
    "train.duration=1000 steps",
)


@pytest.fixture(scope="session")
def small_config():
    """Four layers of width 128 for v5e."""
    from maxlm.config.load import load_config

    return load_config(["models/nano-4x128", "hardware/v5e"], SMALL)


@pytest.fixture(scope="session")
def small_topology():
    from maxlm.plan.topology import parse_topology

    return parse_topology("v5e-4")


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """Folder of compiled programs of this session."""
    return str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="session")
def small_compiled(small_config, small_topology, store):
    """The small config, compiled for v5e-4."""
    pytest.importorskip("libtpu")
    from maxlm.plan.compiling.compile import compile_program

    return compile_program(small_config, small_topology, store=store)


@pytest.fixture(scope="session")
def small_program(small_config, small_topology):
    """Its train program."""
    pytest.importorskip("libtpu")
    from maxlm.plan.compiling.program import build_program

    return build_program(small_config, small_topology.devices())
