from dataclasses import replace

import pytest

from maxlm.config.choices import AttentionKernel, ContextAttention
from maxlm.config.schema import ModelConfig, ParallelConfig
from maxlm.errors import ParallelError
from maxlm.kernels.attention.features import Hardware
from maxlm.model.attention_choices import attention_choices
from maxlm.model.decoder import Execution
from maxlm.parallel.mesh import make_mesh

MODEL = ModelConfig(
    vocab_size=64,
    num_layers=2,
    embed_dim=32,
    num_heads=2,
    num_kv_heads=2,
    head_dim=64,
    mlp_dim=32,
    attention_pattern=["local", "global"],
    attention_window=16,
)


def test_the_choice_of_each_span_is_told_with_its_reason():
    mesh = make_mesh(ParallelConfig())
    execution = Execution(hardware=Hardware("tpu", "TPU v5p"))
    assert attention_choices(MODEL, execution, 128, mesh) == {
        "local": "splash (the best for TPU v5p)",
        "global": "splash (the best for TPU v5p)",
    }
    assert "length 100" in attention_choices(MODEL, execution, 100, mesh)["global"]
    assert attention_choices(MODEL, Execution(), 128, mesh)["global"].startswith("chunked")


def test_what_cannot_run_is_refused_before_compiling():
    execution = Execution(attention=AttentionKernel.SPLASH)
    with pytest.raises(ParallelError, match="runs on tpu, not on cpu; auto would take chunked"):
        attention_choices(MODEL, execution, 128, make_mesh(ParallelConfig()))


@pytest.mark.parametrize("method", ["ring", "all_gather"])
def test_methods_with_one_implementation_tell_no_choice_and_let_none_be_forced(method):
    mesh = make_mesh(ParallelConfig(context=2))
    execution = Execution(context_attention=ContextAttention(method))
    assert attention_choices(MODEL, execution, 128, mesh) == {}
    forced = replace(execution, attention=AttentionKernel.CHUNKED)
    with pytest.raises(ParallelError, match=rf"context 2 .* is {method}, .* to ulysses"):
        attention_choices(MODEL, forced, 128, mesh)


def test_ulysses_tells_who_computes_whole_rows_of_a_part_of_the_heads():
    mesh = make_mesh(ParallelConfig(context=2))
    execution = Execution(
        context_attention=ContextAttention.ULYSSES, hardware=Hardware("tpu", "TPU v5p")
    )
    splash = "splash (the best for TPU v5p)"
    assert attention_choices(MODEL, execution, 128, mesh) == {"local": splash, "global": splash}
    forced = replace(execution, attention=AttentionKernel.CHUNKED)
    assert attention_choices(MODEL, forced, 128, mesh)["global"].startswith("chunked (forced")
    with pytest.raises(ParallelError, match=r"cudnn.* runs on gpu, not on tpu"):
        impossible = replace(execution, attention=AttentionKernel.CUDNN)
        attention_choices(MODEL, impossible, 128, mesh)


def test_ulysses_asks_for_the_heads_of_a_device(monkeypatch):
    calls = []

    def asked(call, hardware, forced):
        calls.append((call.num_heads, call.num_kv_heads))

    monkeypatch.setattr("maxlm.model.attention_choices.choose", asked)
    execution = Execution(context_attention=ContextAttention.ULYSSES)
    shape = MODEL.model_dump() | {"num_heads": 16, "num_kv_heads": 4}
    mesh = make_mesh(ParallelConfig(context=4, tensor=2))
    attention_choices(
        ModelConfig(**shape | {"attention_pattern": ["global"]}), execution, 128, mesh
    )
    assert calls == [(2, 1)]  # two key-value heads of a tensor shard, each on two devices
