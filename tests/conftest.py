"""Runs before jax is imported: eight host devices, quick compiles, long modules first.

Programs are compiled at XLA's lowest level of optimization, and those for TPUs with the least effort: most
of the suite's time is compiling, and each program runs a few times or never. Runs in processes of their
own (`tests/small_run.py`) are compiled as users' runs are. What is compiled is kept for the session, for
all of its workers.
"""

from __future__ import annotations

import atexit
import collections
import gc
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

# XLA's CPU client sizes its thread pool by NPROC; with fewer threads than fake devices a collective
# can wait for a participant that has no thread to run on.
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_OPTIMIZATION_LEVEL", "O0")
_FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # The newer emitters took 12 of the 31 s of one layout's test; jaxlib 0.12 has no others, and ends at the flag.
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS))
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

# Made by the first process of a session; its workers inherit the environment.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="maxlm-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture
def usual_effort() -> Iterator[None]:
    """Let compilers do what they do for users, where the least effort is not enough."""
    import jax

    level = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", "UNKNOWN")
    yield
    jax.config.update("jax_optimization_level", level)


def pytest_collection_finish() -> None:
    """A tenth of the time went into looking through modules and tests that never become garbage."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the one option."""
    parser.addoption("--campaign", action="store_true", help="tests marked campaign, and no others")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Modules with the most slow tests first, so that no worker ends with a long one alone."""
    campaign = config.getoption("--campaign")
    wanted: dict[bool, list[pytest.Item]] = {True: [], False: []}
    for item in items:
        wanted[(item.get_closest_marker("campaign") is not None) == campaign].append(item)
    config.hook.pytest_deselected(items=wanted[False])
    items[:] = wanted[True]
    slow: collections.Counter[str] = collections.Counter()
    for item in items:
        slow[str(item.path)] += item.get_closest_marker("slow") is not None
    items.sort(key=lambda item: -slow[str(item.path)])  # stable: a module's tests stay together
