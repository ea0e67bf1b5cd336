"""What a model config leaves open, filled in from its own sizes, the tokenizer and the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from maxlm.config.choices import PositionKind, RopeScalingKind
from maxlm.config.schema import DataConfig, ModelConfig, RunConfig
from maxlm.errors import ConfigError


@dataclass(frozen=True)
class Derived:
    """One value that a rule set."""

    key: str
    value: Any
    rule: str


def longest_length(data: DataConfig) -> int:
    """The longest example of the run, in tokens."""
    return max([data.length, *(phase.length or 0 for phase in data.phases)])


def row_lengths(config: RunConfig) -> set[int]:
    """Tokens of a row in every phase and evaluation set of a run."""
    given = [phase.length for phase in config.data.phases] or [None]
    given += [one.length for one in config.eval.sets.values()]
    return {length or config.data.length for length in given}


def step_sizes(data: DataConfig) -> list[tuple[int, int]]:
    """Rows and length of a step in each phase, of a config whose batch is resolved."""
    assert data.batch_size
    sizes = [(p.batch_size or data.batch_size, p.length or data.length) for p in data.phases]
    return sizes or [(data.batch_size, data.length)]


def largest_step(data: DataConfig) -> tuple[int, int]:
    """Rows and length of the phase with the most tokens a step."""
    return max(step_sizes(data), key=lambda size: size[0] * size[1])


def resolve_model(model: ModelConfig, *, vocab_size: int, length: int) -> ModelConfig:
    """Fill in what the model config leaves open.

    Args:
        model: as the user wrote it.
        vocab_size: of the tokenizer; used where the config names none.
        length: longest example of the run, see `longest_length`.

    Raises:
        ConfigError: the config's vocabulary is smaller than the tokenizer's, or its learned
            positions are fewer than `length`.
    """
    if model.vocab_size is not None and model.vocab_size < vocab_size:
        raise ConfigError(
            f"model.vocab_size: {model.vocab_size} is smaller than the tokenizer's {vocab_size} "
            "tokens: remove it to use the tokenizer's size, or use another tokenizer"
        )
    learned = model.positions is PositionKind.LEARNED
    if learned and model.max_length is not None and model.max_length < length:
        raise ConfigError(
            f"model.max_length: {model.max_length} learned positions are fewer than the "
            f"{length} tokens of an example (data.length, data.phases)"
        )
    return model.model_copy(
        update={d.key: d.value for d in model_values(model, vocab_size, length)}
    )


def model_values(model: ModelConfig, vocab_size: int, length: int) -> list[Derived]:
    """What `resolve_model` fills in, with its rules; keys are fields of the model section."""
    found = []
    if model.vocab_size is None:
        found.append(Derived("vocab_size", vocab_size, "the tokenizer's"))
    if model.num_kv_heads is None:
        found.append(Derived("num_kv_heads", model.num_heads, "num_heads: no grouping"))
    if model.head_dim is None:
        rule = f"embed_dim {model.embed_dim} / num_heads {model.num_heads}"
        found.append(Derived("head_dim", model.embed_dim // model.num_heads, rule))
    if model.mlp_dim is None and model.mlp.is_gated:
        value = math.ceil(8 * model.embed_dim / 3 / 64) * 64
        rule = "8/3 × embed_dim up to a multiple of 64: the parameters of a plain MLP of 4 × "
        found.append(Derived("mlp_dim", value, rule + "embed_dim (arXiv:2002.05202)"))
    elif model.mlp_dim is None:
        found.append(Derived("mlp_dim", 4 * model.embed_dim, "4 × embed_dim (arXiv:1706.03762)"))
    if model.num_experts and model.expert_mlp_dim is None:
        hidden = model.mlp_dim or next(d.value for d in found if d.key == "mlp_dim")
        found.append(Derived("expert_mlp_dim", hidden, "mlp_dim"))
    longrope = model.rope_scaling.kind is RopeScalingKind.LONGROPE
    if longrope and model.rope_context is None:
        original = model.rope_scaling.original_length or 0
        which = "long" if length > original else "short"
        rule = f"the longest example of the run: {which} factors, original_length is {original}"
        found.append(Derived("rope_context", length, rule))
    if model.max_length is None:
        found.append(Derived("max_length", length, "the longest example of the run"))
    return found
