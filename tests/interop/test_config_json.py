"""config.json and `ModelConfig`: there and back, and everything that is not supported by its key."""

import json
import math

import pytest

from maxlm.config.choices import AttentionSpan, RopeScalingKind
from maxlm.config.derive_model import longest_length, resolve_model
from maxlm.config.load import load_config
from maxlm.config.presets import preset_names
from maxlm.errors import ConfigError
from maxlm.interop.config_json import read_model, unsaid, write_model
from maxlm.interop.folder import read_folder
from maxlm.interop.position_settings import shortest_pattern
from maxlm.interop.registry import FAMILIES, family_named, family_of_config, family_of_model
from tests.interop.tiny import TINY


@pytest.mark.parametrize("name", TINY)
def test_a_config_comes_back_the_same_model(name):
    family = family_of_config(TINY[name])
    model = read_model(family, TINY[name])
    written = json.loads(json.dumps(write_model(family, model)))
    assert read_model(family, written) == model


@pytest.mark.parametrize("name", [n for n in preset_names() if n.startswith("models/")])
def test_published_presets_have_the_family_that_their_names_say(name):
    config = load_config(name)
    vocab = config.model.vocab_size or 257
    model = resolve_model(config.model, vocab_size=vocab, length=longest_length(config.data))
    short = name.removeprefix("models/")
    if short.startswith("small-"):  # a mixture of others' parts
        with pytest.raises(ConfigError, match=r"model\.mlp: plain"):
            family_of_model(model)
        return
    family = family_of_model(model)
    expected = {"gpt3": "gpt2", "nano": "llama", "smollm2": "llama", "phi4": "llama"}
    known = {n.replace("_", ""): n for n in FAMILIES}
    stem = short.split("-")[0].split(".")[0]
    wanted = expected.get(stem) or known.get(stem) or known.get(stem.rstrip("0123456789"))
    if "a3b" in short:
        wanted = "qwen3_moe"
    if short.startswith("gpt-oss"):
        wanted = "gpt_oss"
    if short.startswith("deepseek"):
        wanted = f"deepseek_{short.split('-')[1]}"
    if short == "phi4-mini":  # Llama's code turns whole heads alone
        wanted = "phi3"
    assert family.name == wanted
    assert unsaid(family, model) == []


def test_keys_of_transformers_5_mean_what_those_of_4_mean():
    four = TINY["llama3.1"]
    five = dict(four)
    scaling = five.pop("rope_scaling")
    five["rope_parameters"] = {"rope_theta": five.pop("rope_theta"), **scaling}
    llama = family_named("llama")
    assert read_model(llama, four) == read_model(llama, five)
    four = TINY["gemma3"]
    five = dict(four)
    five["rope_parameters"] = {
        "full_attention": {"rope_theta": five.pop("rope_theta"), **five.pop("rope_scaling")},
        "sliding_attention": {"rope_theta": five.pop("rope_local_base_freq")},
    }
    gemma = family_named("gemma3")
    assert read_model(gemma, four) == read_model(gemma, five)
    assert read_model(gemma, four).rope_scaling.kind is RopeScalingKind.LINEAR


def test_absent_keys_mean_what_transformers_takes_them_for():
    bare = {k: v for k, v in TINY["gemma2"].items() if "softcapping" not in k}
    gemma = family_named("gemma2")
    assert read_model(gemma, bare).attention_logit_cap == 50
    assert read_model(gemma, bare | {"attn_logit_softcapping": None}).attention_logit_cap is None
    mistral = family_named("mistral")
    bare = {k: v for k, v in TINY["mistral"].items() if k != "sliding_window"}
    assert read_model(mistral, bare).attention_window == 4096
    assert read_model(mistral, bare | {"sliding_window": None}).attention_window is None


def test_two_mscales_are_one_attention_factor():
    scaling = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 16}
    llama = family_named("llama")

    def factor(**mscales):
        theirs = TINY["llama3"] | {"rope_scaling": scaling | mscales}
        return read_model(llama, theirs).rope_scaling.attention_factor

    assert factor() is None
    assert factor(mscale=0.707) is None  # transformers takes the two together or none
    assert factor(mscale=1.0, mscale_all_dim=1.0) == 1
    wanted = (0.13 * math.log(40) + 1) / (0.06 * math.log(40) + 1)
    assert factor(mscale=1.3, mscale_all_dim=0.6) == pytest.approx(wanted, rel=1e-12)
    assert factor(mscale=1.3, mscale_all_dim=0.6, attention_factor=2.0) == 2


def test_longrope_is_said_in_the_three_keys_that_transformers_4_takes():
    family, theirs = family_named("phi3"), TINY["phi3_128k"]
    scaling = {key: value for key, value in theirs["rope_scaling"].items() if key != "factor"}
    model = read_model(family, theirs | {"rope_scaling": scaling})
    assert model.rope_scaling.factor == 32  # of lengths, 64 / 2
    written = write_model(family, model)
    assert written["rope_scaling"] == scaling
    assert written["original_max_position_embeddings"] == 2


def test_layers_without_positions_are_listed_or_every_so_many_th():
    family = family_named("smollm3")
    bare = {k: v for k, v in TINY["smollm3"].items() if k != "no_rope_layers"}
    assert read_model(family, bare).rope_pattern == [True, True, True, False]
    every = read_model(family, bare | {"no_rope_layer_interval": 2})
    assert every.rope_pattern == [True, False]
    # Those without positions are the ones that see a window, where nothing else says so.
    assert every.attention_pattern == [AttentionSpan.GLOBAL, AttentionSpan.LOCAL]
    with pytest.raises(ConfigError, match=r"no_rope_layers: says of 2 layers .* is 5"):
        read_model(family, bare | {"no_rope_layers": [1, 0]})


def test_gpt_oss_says_that_there_is_no_stretch_where_transformers_would_else_stretch():
    family = family_named("gpt_oss")
    bare = {key: value for key, value in TINY["gpt_oss"].items() if key != "rope_scaling"}
    with pytest.raises(ConfigError, match="rope_scaling: is missing"):
        read_model(family, bare)
    plain = read_model(family, bare | {"rope_scaling": {"rope_type": "default"}})
    assert plain.rope_scaling.kind is RopeScalingKind.NONE
    assert write_model(family, plain)["rope_scaling"] == {"rope_type": "default"}


def test_mscale_of_every_dim_scales_the_attention_of_latents_and_is_written_back():
    family = family_named("deepseek_v3")
    model = read_model(family, TINY["deepseek_v3"])
    sharper = 0.06 * math.log(4) + 1
    assert model.attention_scale == pytest.approx(20**-0.5 * sharper**2, rel=1e-12)
    wanted = (0.13 * math.log(4) + 1) / sharper
    assert model.rope_scaling.attention_factor == pytest.approx(wanted, rel=1e-12)
    written = write_model(family, model)["rope_scaling"]
    assert (written["mscale"], written["mscale_all_dim"]) == (1.3, 0.6)
    assert "attention_factor" not in written
    for bare in ({}, {"mscale": 1.0}):
        plain = TINY["deepseek_v3"] | {"rope_scaling": {"type": "yarn", "factor": 4.0} | bare}
        assert read_model(family, plain).attention_scale is None


def test_groups_of_experts_go_by_the_method_that_config_json_names():
    family, theirs = family_named("deepseek_v2"), TINY["deepseek_v2"]
    assert read_model(family, theirs).router_groups == 3
    greedy = read_model(family, theirs | {"topk_method": "greedy"})
    assert (greedy.router_groups, greedy.router_groups_per_token) == (1, 1)
    assert write_model(family, greedy)["topk_method"] == "greedy"
    with pytest.raises(ConfigError, match="topk_method: 'noaux_tc' is not supported, only 'group"):
        read_model(family, theirs | {"topk_method": "noaux_tc"})


def test_how_fast_a_routers_biases_move_is_no_hindrance_but_that_there_are_some_is():
    family = family_named("deepseek_v3")
    model = read_model(family, TINY["deepseek_v3"])
    assert unsaid(family, model.model_copy(update={"router_bias_rate": 0.0})) == []
    assert unsaid(family, model.model_copy(update={"router_bias_rate": None}))


def test_a_pattern_is_the_shortest_that_gives_the_layers():
    full, local = AttentionSpan.GLOBAL, AttentionSpan.LOCAL
    assert shortest_pattern([local, full, local, full, local]) == [local, full]
    assert shortest_pattern([full, full]) == [full]
    assert shortest_pattern([full, local, local]) == [full, local, local]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2}},
            r"rope_scaling\.rope_type: 'dynamic' is not",
        ),
        (
            {"rope_scaling": {"rope_type": "longrope", "factor": 2}},
            r"rope_scaling\.short_factor: is missing",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "scale": 2}}, r"rope_scaling\.scale: 2 is not"),
        ({"hidden_act": "silo"}, r"hidden_act: 'silo' is not supported \(did you mean 'silu'\?\)"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: .* is not supported"),
        (
            {"quantization_config": {"quant_method": "mxfp4"}},
            r"quantization_config: 'mxfp4' is not supported: .*Mxfp4Config\(dequantize=True\)",
        ),
        ({"num_hidden_layers": 0}, "num_hidden_layers: 0 does not fit"),
        ({"hidden_size": None}, "hidden_size: is missing"),
        ({"attention_multiplier": 0.1}, "attention_multiplier: 0.1 .* --ignore attention_mult"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_key(tmp_path, changes, message):
    config = {k: v for k, v in (TINY["llama3"] | changes).items() if v is not None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=f"config.json: {message}"):
        read_folder(str(tmp_path))


def test_an_unknown_key_that_is_off_or_ignored_is_no_hindrance(tmp_path):
    config = TINY["llama3"] | {"novel": None, "newer": False, "newest": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, model = read_folder(str(tmp_path), ignored=["newest"])
    assert model.num_layers == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"architectures": ["LlamaForCausalLN"]},
            r"'LlamaForCausalLN' is not supported \(did you mean 'LlamaForCausalLM'\?\); supported",
        ),
        ({"architectures": ["BloomForCausalLM"]}, "supported: GPT2LMHeadModel, LlamaForCausalLM"),
        ({"model_type": "qwen4"}, r"model_type: 'qwen4' .*\(did you mean 'qwen"),
        ({}, "model_type: 'None' is not supported"),
    ],
)
def test_an_unknown_architecture_is_told_what_there_is(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        read_folder(str(tmp_path))


def test_a_folder_without_a_usable_config_json_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json: there is no such file"):
        read_folder(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        read_folder(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="not an object"):
        read_folder(str(tmp_path))


def test_a_model_that_no_family_says_names_what_cannot_be_said():
    llama = read_model(family_named("llama"), TINY["llama3"])
    odd = llama.model_copy(update={"activation": "relu2", "qk_norm": True, "embed_norm": True})
    with pytest.raises(ConfigError, match=r"model\.embed_norm: True \(it would be False\)"):
        family_of_model(odd)
    with pytest.raises(ConfigError, match=r"Qwen2ForCausalLM cannot say .*\n.*attention_bias"):
        write_model(family_named("qwen2"), llama)
    with pytest.raises(ConfigError, match=r"no family 'lama' .did you mean 'llama'"):
        family_named("lama")
