"""config.json to `ModelConfig` and back, by a family's settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from maxlm.config.choices import AttentionSpan, PositionKind
from maxlm.config.derive_model import resolve_model
from maxlm.config.expert_layers import layers_of
from maxlm.config.schema import ModelConfig, Section
from maxlm.errors import ConfigError, did_you_mean
from maxlm.interop.family import Family

# Keys that say nothing about what the model computes from tokens: where it came from, how others
# train, store or sample it.
_UNCOUNTED = frozenset(
    [
        "architectures",
        "model_type",
        "_name_or_path",
        "name_or_path",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "use_cache",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "decoder_start_token_id",
        "attention_dropout",
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
        "hidden_dropout",
        "pretraining_tp",
        "auto_map",
        "router_aux_loss_coef",
        "output_router_logits",
        "router_jitter_noise",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "is_encoder_decoder",
        "is_decoder",
        "chunk_size_feed_forward",
        "id2label",
        "label2id",
        "problem_type",
        "task_specific_params",
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
        "reorder_and_upcast_attn",
        "n_ctx",
        "cache_implementation",
        "_attn_implementation",
        "attn_implementation",
        "unsloth_version",
    ]
)
# By quant_method, how transformers is told to write weights out in full.
_DEQUANTIZED = {
    "mxfp4": ", quantization_config=Mxfp4Config(dequantize=True)",
    "fp8": ", quantization_config=FineGrainedFP8Config(dequantize=True)",
}
# Options that a config.json does not say: they change nothing which is computed from tokens, or
# transformers decides by itself (between the factors of longrope by the length of a text).
_NOT_SAID = frozenset(
    [
        "rope_context",
        "init_std",
        "matrix_init",
        "projection_init",
        "vocab_multiple",
        "load_balance_loss",
        "router_z_loss",
        "capacity_factor",
    ]
)


def read_model(
    family: Family, theirs: Mapping[str, Any], *, ignored: Iterable[str] = ()
) -> ModelConfig:
    """The resolved model of a config.json.

    Args:
        family: whose it is.
        theirs: the content.
        ignored: keys that the caller says do not matter.

    Raises:
        ConfigError: naming the key that is missing, wrong, or that nothing here knows.
    """
    if theirs.get("quantization_config") and "quantization_config" not in set(ignored):
        raise ConfigError(_quantized(theirs["quantization_config"]))
    fields = dict(family.fixed)
    for setting in family.settings:
        fields.update(setting.read(theirs))
    known = {key for setting in family.settings for key in setting.keys}
    for key, value in theirs.items():
        # What is off or unset asks for nothing.
        if key in known | _UNCOUNTED or key in set(ignored) or value is None or value is False:
            continue
        raise ConfigError(
            f"{key}: {value!r} is not supported for {family.architecture}"
            f"{did_you_mean(key, known)}; if it changes nothing that the model computes, say "
            f"--ignore {key}"
        )
    try:
        model = ModelConfig.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0]) if first["loc"] else "?"
        raise ConfigError(
            f"{_key_of(family, field)}: {first['input']!r} does not fit: {first['msg']}"
        ) from error
    assert model.vocab_size and model.max_length
    return resolve_model(model, vocab_size=model.vocab_size, length=model.max_length)


def write_model(family: Family, model: ModelConfig) -> dict[str, Any]:
    """The config.json of a resolved model.

    Raises:
        ConfigError: the family cannot say what the model is; names each option.
    """
    if lost := unsaid(family, model):
        lines = "\n".join(f"  - {line}" for line in lost)
        raise ConfigError(f"{family.architecture} cannot say what this model is:\n{lines}")
    return _written(family, model)


def unsaid(family: Family, model: ModelConfig) -> list[str]:
    """Options of a resolved model that are lost when a family writes it and reads it back."""
    try:
        back = read_model(family, _written(family, model))
    except ConfigError as error:
        return [str(error)]
    lost = []
    ours, theirs = _said(model), _said(back)
    for name, value in ours.items():
        if not _equal(value, theirs[name]):
            lost.append(f"model.{name}: {_text(value)} (it would be {_text(theirs[name])})")
    return lost


def _quantized(theirs: Any) -> str:
    """What to do about weights that are quantised."""
    method = theirs.get("quant_method") if isinstance(theirs, dict) else None
    how = _DEQUANTIZED.get(str(method), "")
    return (
        f"quantization_config: {method or theirs!r} is not supported: weights are read in bfloat16, "
        "float16 or float32. Write them so with transformers, where there is memory for them: "
        f'AutoModelForCausalLM.from_pretrained(PATH, dtype="bfloat16"{how}).save_pretrained(FOLDER), '
        "and import FOLDER"
    )


def _written(family: Family, model: ModelConfig) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
    }
    for setting in family.settings:
        keys.update(setting.write(model))
    return keys


def _said(model: ModelConfig) -> dict[str, Any]:
    """The options that decide what is computed, those without effect left out of account."""
    fields = {name: getattr(model, name) for name in ModelConfig.model_fields}
    for name in _NOT_SAID:
        del fields[name]
    defaults = {name: field.default for name, field in ModelConfig.model_fields.items()}
    pattern = model.attention_pattern
    spans = [pattern[layer % len(pattern)] for layer in range(model.num_layers)]
    fields["attention_pattern"] = spans
    fields["rope_pattern"] = [layer.has_rope for layer in layers_of(model)]
    # How fast biases move is training's; that there are some is not.
    fields["router_bias_rate"] = model.router_bias_rate is not None
    if model.value_head_dim == model.head_dim:
        fields["value_head_dim"] = None
    local = AttentionSpan.LOCAL in spans
    idle: list[str] = []
    if not local:
        idle += ["attention_window", "rope_local_theta"]
    if model.positions is not PositionKind.ROPE:
        idle += ["rope_theta", "rope_scaling", "rope_fraction", "rope_local_theta", "rope_pattern"]
    if not model.qk_norm:
        idle += ["qk_norm_width"]
    if model.num_experts is None:
        idle += ["experts_per_token", "expert_mlp_dim", "shared_experts", "dense_layers"]
        idle += ["expert_every", "router_scoring", "router_normalize", "router_scale"]
        idle += ["router_bias_rate", "router_logit_bias", "router_groups"]
        idle += ["router_groups_per_token"]
    elif model.expert_every == 1 and model.dense_layers == 0:
        idle += ["mlp_dim"]
    fields |= {name: defaults[name] for name in idle}
    if local and fields["rope_local_theta"] == fields["rope_theta"]:
        fields["rope_local_theta"] = None
    usual = model.head_dim and model.head_dim**-0.5
    if fields["attention_scale"] is not None and _equal(fields["attention_scale"], usual):
        fields["attention_scale"] = None
    return fields


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Section) and isinstance(b, Section):
        return all(_equal(getattr(a, name), getattr(b, name)) for name in type(a).model_fields)
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-12)
    return a == b


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(dict.fromkeys(map(str, value))) + "]"
    return str(value)


def _key_of(family: Family, field: str) -> str:
    """The key of config.json from which a field came."""
    for setting in family.settings:
        if getattr(setting, "field", None) == field:
            return setting.keys[0] if setting.keys else field
    return field
