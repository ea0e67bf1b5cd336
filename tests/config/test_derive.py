"""Open values are filled in by the stated rules."""

import dataclasses

import pytest

from maxlm.config.derive import (
    Facts,
    data_shard_count,
    longest_length,
    resolve,
    resolve_model,
)
from maxlm.config.load import load_config
from maxlm.config.scaling_laws import step_law_batch_tokens, step_law_learning_rate
from maxlm.config.schema import ModelConfig, ParallelConfig, RunConfig
from maxlm.errors import ConfigError
from maxlm.model.count import count_non_embedding_parameters, count_parameters


def facts_of(config, *, train_tokens=None, num_devices=1, platform="tpu", vocab_size=50257):
    model = resolve_model(config.model, vocab_size=vocab_size, length=longest_length(config.data))
    return Facts(
        parameters=count_parameters(model),
        non_embedding_parameters=count_non_embedding_parameters(model),
        vocab_size=vocab_size,
        train_tokens=train_tokens,
        num_devices=num_devices,
        platform=platform,
    )


def resolved(name, *overrides, **facts):
    config = load_config(name, overrides)
    return resolve(config, facts_of(config, **facts))


def test_the_laws_have_their_published_values():
    # Step Law's own example (arXiv:2503.04715): a 1B model on 100B tokens.
    assert step_law_learning_rate(1.07e9, 100e9) == pytest.approx(1.55e-3, rel=0.05)
    assert step_law_batch_tokens(100e9) == pytest.approx(1.1e6, rel=0.05)


def test_only_a_model_is_enough():
    result = resolved("models/gpt2-124m")
    config = result.config
    assert config.train.duration.amount == 20 * 124_439_808
    assert config.data.batch_size == 128  # 134,443 tokens / 1024, to a power of two
    assert config.optimizer.learning_rate == pytest.approx(3.04e-3)
    assert result.total_steps == pytest.approx(20 * 124_439_808 / (128 * 1024), abs=1)
    assert config.schedule.warmup.amount == result.total_steps // 100
    assert config.train.precision == "bfloat16"


def test_every_open_value_is_closed_and_has_a_rule():
    result = resolved("runs/books-10m", vocab_size=4096, train_tokens=20_000_000, platform="cpu")
    plain = result.config.model_dump(mode="json")
    for derived in result.derived:
        value = plain
        for part in derived.key.split("."):
            value = value[part]
        assert value is not None
        assert derived.rule
    model = result.config.model
    assert None not in (model.vocab_size, model.num_kv_heads, model.head_dim, model.mlp_dim)
    open_values = [
        result.config.train.duration, result.config.train.precision, result.config.data.batch_size,
        result.config.optimizer.learning_rate, result.config.schedule.warmup,
        result.config.eval.every, result.config.eval.batch_size, result.config.checkpoint.every,
        result.config.logging.every, result.config.train.loss_chunk,
        result.config.parallel.scan_unroll, result.config.parallel.cpu_devices,
    ]  # fmt: skip
    assert None not in open_values


def test_resolving_again_derives_nothing_new():
    config = resolved("runs/books-10m", vocab_size=4096, train_tokens=10**7).config
    again = resolve(config, facts_of(config, vocab_size=4096, train_tokens=10**7))
    assert again.config == config
    assert again.derived == []


def test_what_the_user_set_stays():
    config = resolved(
        "models/gpt2-124m", "data.batch_size=24", "optimizer.learning_rate=1e-3",
        "train.duration=2B tokens", "schedule.warmup=0", "logging.every=7",
    ).config  # fmt: skip
    assert config.data.batch_size == 24
    assert config.optimizer.learning_rate == 1e-3
    assert str(config.train.duration) == "2000000000 tokens"
    assert config.schedule.warmup.amount == 0
    assert config.logging.every.amount == 7


def test_little_data_is_read_at_most_four_times():
    result = resolved("models/nano-4x128", vocab_size=257, train_tokens=1_000_000)
    assert result.config.train.duration.amount == 4_000_000
    assert "arXiv:2305.16264" in result.derived[-1].rule or any(
        "arXiv:2305.16264" in derived.rule for derived in result.derived
    )


@pytest.mark.parametrize("num_devices", [1, 2, 4, 8, 64])
def test_the_derived_batch_does_not_depend_on_a_power_of_two_of_devices(num_devices):
    assert resolved("models/gpt2-124m", num_devices=num_devices).config.data.batch_size == 128


def test_the_derived_batch_divides_over_an_odd_mesh_and_accumulation():
    config = resolved("models/gpt2-124m", "train.accumulation=2", num_devices=6).config
    assert config.data.batch_size == 132  # 12 shards


def test_a_smaller_batch_than_the_laws_lowers_the_rate_by_its_root():
    law = resolved("models/gpt2-124m", "train.duration=2B tokens", "data.batch_size=128")
    quarter = resolved("models/gpt2-124m", "train.duration=2B tokens", "data.batch_size=32")
    ratio = quarter.config.optimizer.learning_rate / law.config.optimizer.learning_rate
    assert ratio == pytest.approx(0.5, rel=0.01)


def test_extrapolation_is_said_and_the_rate_bounded():
    result = resolved("models/nano-4x128", vocab_size=257, train_tokens=1_000_000)
    assert result.config.optimizer.learning_rate == pytest.approx(2**-7, rel=1e-2)
    rules = {derived.key: derived.rule for derived in result.derived}
    assert "extrapolated" in rules["optimizer.learning_rate"]
    assert "extrapolated" in rules["data.batch_size"]


def test_steps_of_phases_add_up():
    result = resolved(
        "models/nano-4x128", "data.batch_size=8", "train.duration=100 steps",
        "data.phases=[{duration: 64k tokens, length: 128}, {}]", vocab_size=257,
    )  # fmt: skip
    assert result.total_steps == 100
    first = 63  # 64,000 tokens / (8 × 128), rounded up
    assert result.total_tokens == first * 8 * 128 + (100 - first) * 8 * 64
    assert result.config.model.max_length == 128


def test_a_duration_in_steps_gives_a_batch_that_agrees_with_its_tokens():
    result = resolved("models/gpt2-124m", "train.duration=20000 steps")
    wanted = step_law_batch_tokens(result.total_tokens) / 1024
    assert 0.5 < result.config.data.batch_size / wanted < 2


def test_intervals_in_epochs_become_tokens():
    config = resolved(
        "models/nano-4x128", "train.duration=3 epochs", "eval.every=0.5 epochs",
        vocab_size=257, train_tokens=1_000_000,
    ).config  # fmt: skip
    assert str(config.eval.every) == "500000 tokens"
    assert str(config.train.duration) == "3 epochs"


def test_warm_up_in_another_unit_that_is_too_long_is_refused():
    with pytest.raises(ConfigError, match="longer than training"):
        resolved("models/gpt2-124m", "train.duration=2B tokens", "schedule.warmup=100000")


def test_the_platform_decides_precision_and_chunks():
    cpu = resolved("models/gpt2-124m", platform="cpu").config
    assert (cpu.train.precision, cpu.train.loss_chunk) == ("float32", 512)
    tpu = [resolved(f"models/{m}", platform="tpu").config for m in ("nano-4x128", "llama3-8b")]
    assert [c.train.loss_chunk for c in tpu] == [2048, 1024]
    nano = resolved("models/nano-4x128", platform="cpu").config
    assert (cpu.parallel.scan_unroll, nano.parallel.scan_unroll) == (1, 4)


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused():
    with pytest.raises(ConfigError, match="300 is smaller than the tokenizer's 400"):
        resolve_model(ModelConfig(vocab_size=300), vocab_size=400, length=8)
    assert resolve_model(ModelConfig(vocab_size=512), vocab_size=400, length=8).vocab_size == 512


def test_learned_positions_shorter_than_an_example_are_refused():
    model = ModelConfig(positions="learned", max_length=8)
    with pytest.raises(ConfigError, match="8 learned positions are fewer than the 16 tokens"):
        resolve_model(model, vocab_size=400, length=16)


def test_a_gated_mlp_has_about_the_parameters_of_a_plain_one():
    gated = resolve_model(ModelConfig(embed_dim=768), vocab_size=8, length=8)
    plain = resolve_model(ModelConfig(embed_dim=768, mlp="plain"), vocab_size=8, length=8)
    assert (gated.mlp_dim, plain.mlp_dim) == (2048, 3072)


def test_data_shards_are_replica_times_fsdp():
    assert data_shard_count(ParallelConfig(replica=2, fsdp=-1, tensor=2), 16) == 8
    assert data_shard_count(ParallelConfig(replica=-1, fsdp=4), 8) == 8


def test_given_shards_win_over_the_mesh_arithmetic():
    config = RunConfig(train={"duration": "2B tokens"})
    facts = dataclasses.replace(facts_of(config), data_shards=3)
    assert resolve(config, facts).config.data.batch_size % 3 == 0
