from dataclasses import replace

import jax
import pytest

from maxlm.config.choices import AttentionKernel as Kernel
from maxlm.errors import ParallelError
from maxlm.kernels.attention.choose import FEATURES, PREFERENCE, choose
from maxlm.kernels.attention.features import AttentionCall, Hardware, hardware_of

LLAMA = AttentionCall(length=4096, num_heads=32, num_kv_heads=8, head_dim=128, dtype="bfloat16")
TPU = Hardware("tpu", "TPU v5p")
HOPPER = Hardware("gpu", "NVIDIA H100 80GB HBM3", 9.0)
AMPERE = Hardware("gpu", "NVIDIA A100-SXM4-80GB", 8.0)
AMD = Hardware("gpu", "AMD Instinct MI300X")
CPU = Hardware("cpu", "cpu")


@pytest.mark.parametrize(
    ("hardware", "change", "kernel"),
    [
        (TPU, {}, Kernel.SPLASH),
        (TPU, {"window": 1024, "logit_cap": 50.0}, Kernel.SPLASH),
        (TPU, {"head_dim": 192, "value_dim": 128}, Kernel.SPLASH),
        (TPU, {"sinks": True}, Kernel.SPLASH),
        (TPU, {"value_dim": 80}, Kernel.CHUNKED),
        (TPU, {"length": 1000}, Kernel.CHUNKED),
        (TPU, {"head_dim": 80}, Kernel.CHUNKED),
        (TPU, {"dtype": "float64"}, Kernel.CHUNKED),
        (HOPPER, {}, Kernel.CUDNN),
        (HOPPER, {"window": 1024}, Kernel.CUDNN),
        (HOPPER, {"logit_cap": 50.0}, Kernel.CHUNKED),
        (HOPPER, {"sinks": True}, Kernel.CHUNKED),
        (HOPPER, {"value_dim": 64}, Kernel.CHUNKED),
        (HOPPER, {"dtype": "float32"}, Kernel.CHUNKED),
        (HOPPER, {"head_dim": 256}, Kernel.CHUNKED),
        (AMPERE, {}, Kernel.CHUNKED),
        (AMD, {}, Kernel.CHUNKED),
        (CPU, {"dtype": "float32"}, Kernel.CHUNKED),
    ],
)
def test_the_best_that_can_do_the_call_is_chosen(hardware, change, kernel):
    assert choose(replace(LLAMA, **change), hardware).kernel is kernel


def test_nothing_that_is_chosen_lacks_anything():
    for hardware in (TPU, HOPPER, AMPERE, AMD, CPU, Hardware("other")):
        for window in (None, 100):
            for cap in (None, 30.0):
                for length in (64, 1000, 4096):
                    for dtype in ("bfloat16", "float32", "float64"):
                        call = replace(
                            LLAMA, window=window, logit_cap=cap, length=length, dtype=dtype
                        )
                        if hardware.platform == "other":
                            with pytest.raises(ParallelError):
                                choose(call, hardware)
                            continue
                        kernel = choose(call, hardware).kernel
                        assert not FEATURES[kernel].lacking(call, hardware)


def test_the_reason_says_what_a_better_one_lacks():
    reason = choose(replace(LLAMA, length=1000), TPU).reason
    assert "splash" in reason and "length 1000" in reason and "896 and 1024" in reason
    assert "soft cap" in choose(replace(LLAMA, logit_cap=50.0), HOPPER).reason
    assert "compute capability 9.0" in choose(LLAMA, AMPERE).reason


def test_what_can_is_forced():
    call = replace(LLAMA, dtype="float32")
    assert choose(call, CPU, Kernel.REFERENCE).kernel is Kernel.REFERENCE
    assert choose(LLAMA, TPU, Kernel.CHUNKED).kernel is Kernel.CHUNKED


@pytest.mark.parametrize(
    ("kernel", "hardware", "change", "why"),
    [
        (Kernel.SPLASH, CPU, {}, "runs on tpu, not on cpu"),
        (Kernel.CUDNN, TPU, {}, "runs on gpu, not on tpu"),
        (Kernel.CUDNN, AMPERE, {}, "compute capability 9.0"),
        (Kernel.CUDNN, HOPPER, {"logit_cap": 30.0}, "no soft cap"),
        (Kernel.CUDNN, HOPPER, {"sinks": True}, "no attention sinks"),
        (Kernel.CUDNN, HOPPER, {"value_dim": 64}, r"another width \(here 64, head_dim 128\)"),
        (Kernel.SPLASH, TPU, {"value_dim": 80}, "value_head_dim 80 does not divide by 64"),
        (Kernel.SPLASH, TPU, {"length": 1000}, "nearest are 896 and 1024"),
    ],
)
def test_what_cannot_is_refused_with_the_reason_and_what_auto_would_take(
    kernel, hardware, change, why
):
    with pytest.raises(ParallelError, match=why) as error:
        choose(replace(LLAMA, **change), hardware, kernel)
    assert f"parallel.attention is {kernel.value}" in str(error.value)
    assert "auto would take" in str(error.value)


def test_every_kernel_declares_itself_and_the_last_choice_can_do_everything():
    assert set(FEATURES) == set(Kernel) - {Kernel.AUTO}
    for platform, kernels in PREFERENCE.items():
        assert platform in FEATURES[kernels[-1]].platforms


def test_hardware_is_read_off_a_device_also_a_described_one():
    assert hardware_of() == Hardware("cpu", jax.devices()[0].device_kind)

    class Device:
        platform, device_kind, compute_capability = "cuda", "NVIDIA H200", "9.0"

    assert hardware_of(Device()) == Hardware("gpu", "NVIDIA H200", 9.0)
    Device.compute_capability = "gfx942"
    assert hardware_of(Device()).compute_capability is None
