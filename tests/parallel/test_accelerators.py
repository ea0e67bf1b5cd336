"""On a machine without an accelerator jax takes the CPU, unless somebody says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import pytest

from maxlm.parallel.accelerators import accelerator_attached, use_cpu_where_alone


@pytest.fixture
def platforms(monkeypatch):
    """What jax is told, with nothing said before and libtpu installed."""
    told = []
    monkeypatch.setattr(jax.config, "update", lambda name, value: told.append((name, value)))
    monkeypatch.setattr("maxlm.parallel.accelerators._asked", lambda: None)
    monkeypatch.setattr("maxlm.parallel.accelerators._has_libtpu", lambda: True)
    return told


@pytest.mark.parametrize("name", ["accel0", "vfio", "nvidia0", "nvidiactl", "dxg", "kfd"])
def test_a_device_file_means_an_accelerator(tmp_path, name, platforms):
    assert not accelerator_attached(str(tmp_path))
    (tmp_path / name).touch()
    assert accelerator_attached(str(tmp_path))
    use_cpu_where_alone(str(tmp_path))
    assert platforms == []


def test_without_one_jax_takes_the_cpu(tmp_path, platforms):
    (tmp_path / "null").touch()
    use_cpu_where_alone(str(tmp_path))
    assert platforms == [("jax_platforms", "cpu")]


def test_what_the_user_says_stays(tmp_path, platforms, monkeypatch):
    monkeypatch.setattr("maxlm.parallel.accelerators._asked", lambda: "tpu")
    use_cpu_where_alone(str(tmp_path))
    assert platforms == []


def test_without_libtpu_other_backends_may_be_tried(tmp_path, platforms, monkeypatch):
    monkeypatch.setattr("maxlm.parallel.accelerators._has_libtpu", lambda: False)
    use_cpu_where_alone(str(tmp_path))
    assert platforms == []


@pytest.mark.skipif(accelerator_attached(), reason="there is an accelerator")
def test_the_start_of_the_devices_prints_nothing():
    code = "from maxlm.parallel.accelerators import *; use_cpu_where_alone(); jax.devices()"
    environment = {n: v for n, v in os.environ.items() if n not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
