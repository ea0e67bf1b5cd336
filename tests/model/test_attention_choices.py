import pytest

from maxlm.config.choices import AttentionKernel
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


def test_where_rows_lie_over_several_devices_nothing_is_chosen_and_nothing_can_be_forced():
    mesh = make_mesh(ParallelConfig(context=2))
    assert attention_choices(MODEL, Execution(), 128, mesh) == {}
    with pytest.raises(ParallelError, match="context_attention decides"):
        attention_choices(MODEL, Execution(attention=AttentionKernel.CHUNKED), 128, mesh)
