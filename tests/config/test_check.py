"""Values that do not fit each other are refused with the arithmetic."""

import pytest

from maxlm.config.check import require_sound
from maxlm.config.load import load_config
from maxlm.config.schema import ModelConfig, RunConfig
from maxlm.errors import ConfigError

MISFITS = {
    "heads": (["model.embed_dim=100"], "100 does not divide over num_heads 12 (100 = 12 × 8 + 4)"),
    "kv heads": (["model.num_kv_heads=5"], "num_heads 12 is no multiple of num_kv_heads 5: use one of 1, 2, 3, 4, 6, 12"),
    "odd rope": (["model.head_dim=33"], "33 is odd, but rope turns pairs"),
    "local without window": (["model.attention_pattern=[local]"], "model.attention_window is not set"),
    "window without local": (["model.attention_window=5"], "no layer is local"),
    "more experts than there are": (
        ["model.num_experts=4", "model.experts_per_token=5"],
        "a token cannot visit 5 of 4 experts (model.num_experts): use at most 4",
    ),
    "no layer with experts": (
        ["model.num_experts=4", "model.dense_layers=12"],
        "no layer has experts: of 12 layers, the first 12 are dense",
    ),
    "experts in groups": (
        ["model.num_experts=6", "model.router_groups=4"],
        "6 experts (model.num_experts) do not divide into 4 groups: nearest are 3 and 6",
    ),
    "too few experts in a token's groups": (
        ["model.num_experts=8", "model.experts_per_token=3", "model.router_groups=4"],
        "in 1 of 4 groups (model.router_groups) of 2 experts a token cannot visit 3 (experts_per_token): use 2 to 4 groups",
    ),
    "groups without two experts": (
        ["model.num_experts=4", "model.router_groups=4", "model.router_groups_per_token=2", "model.router_scoring=sigmoid"],
        "a group of 1 expert has no best two, by which sigmoid scores choose it",
    ),
    "experts over devices": (
        ["model.num_experts=6", "parallel.expert=4"],
        "6 experts (model.num_experts) do not divide over expert 4 (6 = 4 × 1 + 2): nearest are 3 and 6",
    ),
    "rms bias": (["model.norm_bias=true"], "an rms norm has no bias"),
    "learned positions": (
        ["model.positions=learned", "model.max_length=8", "data.length=9"],
        "9 is longer than the 8 learned positions",
    ),
    "learned positions of a phase": (
        ["model.positions=learned", "model.max_length=8", "data.length=8", "data.phases=[{length: 16}]"],
        "16 is longer than the 8 learned positions",
    ),
    "open phase": (["data.phases=[{}, {}]"], "only the last phase may leave it so"),
    "unknown source": (
        ["data.mixture.books.store=x", "data.phases=[{weights: {bokks: 1}}]"],
        "data.mixture has no source 'bokks' (did you mean 'books'?)",
    ),
    "no source left": (
        ["data.mixture.a.store=x", "data.phases=[{weights: {a: 0}}]"],
        "leaves every source out",
    ),
    "negative weight": (
        ["data.mixture.a.store=x", "data.phases=[{weights: {a: -1}}]"],
        "-1.0 does not fit; allowed: ≥ 0",
    ),
    "batch": (
        ["data.batch_size=13", "train.accumulation=4"],
        "13 does not divide into train.accumulation 4 micro-batches: nearest are 12 and 16",
    ),
    "no duration": (["train.duration=0"], "'0 steps' does not fit; allowed: more than 0"),
    "warm-up and decay": (
        ["train.duration=1000", "schedule.warmup=900"],
        "warm-up 900 + decay 0.2 × 1,000 = 1,100 steps is longer than training",
    ),
    "mesh": (["parallel.replica=-1"], "replica and fsdp are both -1"),
    "empty axis": (["parallel.tensor=0"], "0 does not fit; allowed: 1 or more, or -1"),
    "source name": (["data.mixture={a b: {store: x}}"], "the name 'a b' may have only letters"),
    "idle muon rate": (["optimizer.muon_learning_rate=0.1"], "has no effect, because optimizer.kind is adamw"),
    "idle decay": (["schedule.kind=cosine", "schedule.decay_fraction=0.1"], "has no effect, because schedule.kind is cosine"),
    "idle context attention": (["parallel.context_attention=ring"], "has no effect, because parallel.context is 1"),
    "experts of a dense model": (["model.router_z_loss=0.1"], "has no effect, because model.num_experts is not set: the model is dense"),
    "kernel of experts of a dense model": (["parallel.expert_matmul=ragged_dot"], "the model is dense"),
    "exchange on one device": (
        ["model.num_experts=4", "parallel.expert_exchange=gather"],
        "has no effect, because parallel.expert is 1: experts do not lie over devices",
    ),
    "grouped matmul with a capacity": (
        ["model.num_experts=4", "model.capacity_factor=1.5", "parallel.expert_matmul=blocks"],
        "has no effect, because with model.capacity_factor every expert has as many tokens",
    ),
    "capacity": (["model.num_experts=4", "model.capacity_factor=0"], "0 does not fit; allowed: number > 0"),
    "idle theta": (["model.positions=none", "model.rope_theta=5"], "has no effect, because model.positions is none"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_values_that_do_not_fit_are_refused(name):
    overrides, expected = MISFITS[name]
    with pytest.raises(ConfigError) as caught:
        load_config([], overrides)
    assert expected in str(caught.value)
    assert "command line: " in str(caught.value)


def test_a_preset_may_set_what_an_override_makes_idle():
    assert load_config("runs/quickstart", ["optimizer.kind=adamw"]).optimizer.kind == "adamw"


def test_a_config_made_in_python_is_checked_too():
    with pytest.raises(ConfigError, match=r"model\.embed_dim: 100 does not divide"):
        require_sound(RunConfig(model=ModelConfig(embed_dim=100)))
