"""All families: found by a config.json, or by what a model of ours is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maxlm.config.schema import ModelConfig
from maxlm.errors import ConfigError, did_you_mean
from maxlm.interop.config_json import read_model, unsaid, write_model
from maxlm.interop.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3
from maxlm.interop.families.gemma import GEMMA2, GEMMA3
from maxlm.interop.families.gpt2 import GPT2
from maxlm.interop.families.gpt_oss import GPT_OSS
from maxlm.interop.families.llama import LLAMA, MISTRAL, OLMO2, PHI3, QWEN2, QWEN3, SMOLLM3
from maxlm.interop.families.mixtures import MIXTRAL, QWEN3_MOE
from maxlm.interop.family import Family

# In the order in which `family_of_model` asks them.
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        GPT2,
        LLAMA,
        MISTRAL,
        QWEN2,
        QWEN3,
        GEMMA2,
        GEMMA3,
        OLMO2,
        PHI3,
        MIXTRAL,
        QWEN3_MOE,
        SMOLLM3,
        GPT_OSS,
        DEEPSEEK_V2,
        DEEPSEEK_V3,
    )
}


def family_named(name: str) -> Family:
    """The family of a name. Raises ConfigError."""
    if name not in FAMILIES:
        raise ConfigError(
            f"no family '{name}'{did_you_mean(name, FAMILIES)}; there are: {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def family_of_config(theirs: Mapping[str, Any]) -> Family:
    """The family of a config.json, by its architecture or else its model_type.

    Raises:
        ConfigError: it is none that is supported; says which are.
    """
    names = theirs.get("architectures") or []
    for family in FAMILIES.values():
        if names and family.architecture == names[0]:
            return family
    kind = theirs.get("model_type")
    for family in FAMILIES.values():
        if not names and family.model_type == kind:
            return family
    known = {f.architecture: f.model_type for f in FAMILIES.values()}
    if names:
        near = did_you_mean(str(names[0]), known)
        what = f"architectures: '{names[0]}' is not supported{near}"
    else:
        near = did_you_mean(str(kind), known.values())
        what = f"model_type: '{kind}' is not supported{near}"
    raise ConfigError(f"{what}; supported: {', '.join(known)}")


def family_of_model(model: ModelConfig) -> Family:
    """The first family whose config.json says all that this resolved model is.

    Raises:
        ConfigError: none does; names the nearest and what it cannot say.
    """
    missing = {}
    for family in FAMILIES.values():
        lost = unsaid(family, model)
        if not lost:
            return family
        missing[family.name] = lost
    nearest = min(missing, key=lambda name: len(missing[name]))
    lines = "\n".join(f"  - {line}" for line in missing[nearest])
    raise ConfigError(
        "no architecture of transformers computes what this model does; the nearest is "
        f"{nearest}, which cannot say:\n{lines}"
    )


__all__ = [
    "FAMILIES",
    "family_named",
    "family_of_config",
    "family_of_model",
    "read_model",
    "write_model",
]
