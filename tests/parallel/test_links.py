"""A mesh that its devices' links make slow is told so; one that they suit is not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from maxlm.config.load import load_config
from maxlm.config.mesh_axes import MESH_AXES
from maxlm.parallel.links import link_warnings
from maxlm.train import setup
from tests.small_run import devices, write_quick_config, write_text_store


@dataclass(frozen=True)
class Device:
    """What a device says of itself."""

    platform: str
    device_kind: str
    process_index: int = 0
    slice_index: int | None = None


def mesh(devices: list[Device], **sizes: int) -> np.ndarray:
    return np.array(devices, dtype=object).reshape([sizes.get(axis, 1) for axis in MESH_AXES])


def gpus(count: int, *, per_machine: int = 8, per_process: int = 8, told: bool = True):
    return [
        Device("gpu", "NVIDIA H200", i // per_process, i // per_machine if told else None)
        for i in range(count)
    ]


def tpus(kind: str, count: int) -> list[Device]:
    return [Device("tpu", kind, i // 4, 0) for i in range(count)]


@pytest.mark.parametrize("axis", ["context", "expert", "tensor"])
def test_an_axis_that_sends_in_every_layer_is_told_where_it_spans_machines(axis):
    (text,) = link_warnings(mesh(gpus(16), **{axis: 16}))
    assert text.startswith(f"{axis} 16 spans 2 machines of 8 GPUs")


@pytest.mark.parametrize(
    "sizes",
    [
        {"fsdp": 16},
        {"replica": 2, "tensor": 8},
        {"stage": 2, "context": 4, "tensor": 2},
        {"fsdp": 4, "expert": 2, "tensor": 2},
    ],
)
def test_axes_within_machines_and_others_between_them_are_fine(sizes):
    assert link_warnings(mesh(gpus(16), **sizes)) == []


def test_only_the_axis_between_the_machines_is_told():
    (text,) = link_warnings(mesh(gpus(16), context=2, tensor=8))
    assert text.startswith("context 2 spans 2 machines")


def test_processes_of_one_gpu_each_are_no_machines_of_one():
    one_each = gpus(8, per_process=1)
    assert link_warnings(mesh(one_each, tensor=8)) == []
    assert link_warnings(mesh(gpus(8, per_process=1, told=False), tensor=8)) == []


def test_a_rack_whose_gpus_share_nvlink_is_one_machine():
    assert link_warnings(mesh(gpus(16, per_machine=72, per_process=4), tensor=16)) == []


def test_without_a_word_of_the_driver_a_process_of_several_gpus_is_a_machine():
    assert link_warnings(mesh(gpus(16, told=False), fsdp=2, tensor=8)) == []
    assert "spans 2 machines" in link_warnings(mesh(gpus(16, told=False), tensor=16))[0]


def test_tensor_beyond_what_a_tpus_links_feed_is_told_with_the_arithmetic():
    (text,) = link_warnings(mesh(tpus("TPU v6 lite", 16), tensor=16), 14336)
    assert "tensor 16 on TPU v6 lite" in text and "beyond tensor 8" in text
    assert "1.5 × 14336 × 360 GB/s ÷ 918 TFLOP/s" in text


@pytest.mark.parametrize(
    ("kind", "mlp_dim", "tensor"),
    [
        ("TPU v6 lite", 14336, 8),
        ("TPU v5 lite", 14336, 16),
        ("TPU v5p", 28672, 32),
        ("TPU v5p", None, 64),  # nothing is known of the model
        ("TPU unheard of", 128, 64),
    ],
)
def test_tensor_that_the_links_feed_is_fine(kind, mlp_dim, tensor):
    assert link_warnings(mesh(tpus(kind, 64), fsdp=64 // tensor, tensor=tensor), mlp_dim) == []


def test_host_devices_have_no_links():
    cpus = [Device("cpu", "cpu", i) for i in range(4)]
    assert link_warnings(mesh(cpus, tensor=4), 16) == []


def test_a_run_says_it_at_its_start(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "link_warnings", lambda mesh, mlp_dim: [f"too wide for {mlp_dim}"])
    config = write_quick_config(tmp_path, write_text_store(tmp_path / "store"))
    told = []
    with devices(1):
        setup.prepare(load_config(str(config), ["model.mlp_dim=48"]), message=told.append)
    assert "a slow mesh: too wide for 48" in told
