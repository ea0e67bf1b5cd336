"""The rule for attention over several devices, and refusals with their arithmetic."""

import jax
import pytest

from maxlm.config.choices import ContextAttention
from maxlm.config.schema import ModelConfig, ParallelConfig
from maxlm.errors import ParallelError
from maxlm.kernels.attention.features import Hardware
from maxlm.kernels.context.choose import choose_context_attention
from maxlm.parallel.mesh import check_length, make_mesh

MODEL = ModelConfig(num_heads=8, num_kv_heads=2, head_dim=128)
CPU = {"hardware": Hardware("cpu"), "dtype": "bfloat16"}


def choose(lengths, asked="auto", model=MODEL, platform="cpu", **parallel):
    mesh = make_mesh(ParallelConfig(**({"fsdp": -1} | parallel)))
    hardware = Hardware(platform, compute_capability=9.0)
    return choose_context_attention(
        ContextAttention(asked), model, mesh, lengths, hardware=hardware, dtype="bfloat16"
    )


@pytest.mark.parametrize(
    ("lengths", "parallel", "method", "reason"),
    [
        ([16384], {"context": 8}, "ring", "2048 tokens a device × 8 / 2 heads = 8192, at least"),
        ([8192], {"context": 8}, "ulysses", "= 4096, under 8192; 8 heads divide by 8"),
        ([8200], {"context": 8}, "ulysses", "length 8200 does not divide into 2 × 8 chunks"),
        ([4096], {"context": 4, "tensor": 2}, "ulysses", "8 heads / tensor 2 divide by 4"),
        ([512], {"context": 2, "tensor": 4}, "ulysses", "8 heads / tensor 4 divide by 2"),
    ],
)
def test_auto_follows_its_rule_and_says_so(lengths, parallel, method, reason):
    choice = choose(lengths, **parallel)
    assert choice.method == method
    assert reason in choice.reason


@pytest.mark.parametrize(("platform", "kernel"), [("tpu", "splash"), ("gpu", "cudnn")])
def test_auto_gives_whole_rows_to_a_kernel_where_there_is_one(platform, kernel):
    choice = choose([16384, 1024], platform=platform, context=8)
    assert choice.method is ContextAttention.ULYSSES
    assert choice.reason.startswith(f"{kernel} attends to whole rows")


@pytest.mark.parametrize(
    ("lengths", "change"),
    [
        ([16384], {"num_heads": 6}),  # heads do not divide
        ([16384, 1040], {}),  # splash takes multiples of 128
    ],
)
def test_without_a_kernel_for_every_row_auto_follows_the_rule_of_transfers(lengths, change):
    model = MODEL.model_copy(update=change)
    assert choose(lengths, model=model, platform="tpu", context=8).method is ContextAttention.RING


def test_heads_that_do_not_divide_leave_ring_and_then_all_gather():
    model = ModelConfig(num_heads=6, num_kv_heads=2)
    assert choose([64], model=model, context=4)[0] is ContextAttention.RING
    method, reason = choose([64, 60], model=model, context=4)
    assert method is ContextAttention.ALL_GATHER
    assert "6 heads do not divide by 4" in reason and "length 60 into 2 × 4" in reason


def test_what_is_asked_for_is_taken():
    for method in ("ring", "ulysses", "all_gather"):
        assert choose([64], asked=method, context=4) == (method, "asked for")


def test_ulysses_is_refused_where_heads_do_not_divide():
    with pytest.raises(
        ParallelError, match=r"8 heads / tensor 2 = 4 a device .* by context 3.*2 and 4"
    ):
        mesh = make_mesh(ParallelConfig(fsdp=1, context=3, tensor=2), jax.devices()[:6])
        choose_context_attention(ContextAttention.ULYSSES, MODEL, mesh, [48], **CPU)


def test_lengths_that_do_not_divide_are_refused_with_the_nearest():
    with pytest.raises(
        ParallelError, match=r"length 100 .* 8 \(context 8\): nearest are 96 and 104"
    ):
        choose([64, 100], context=8)
    with pytest.raises(
        ParallelError, match=r"by 16 \(context 8 × 2 chunks .* nearest are 96 and 112"
    ):
        choose([104], asked="ring", context=8)
    mesh = make_mesh(ParallelConfig(fsdp=1, context=8))
    with pytest.raises(ParallelError, match=r"length 6 .* nearest are 8$"):
        check_length(6, mesh)
    check_length(7, make_mesh(ParallelConfig(fsdp=8)), chunks=2)
