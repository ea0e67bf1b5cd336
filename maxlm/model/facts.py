"""What the rules of `maxlm.config.derive` need to know of a model and its hardware (imports no jax)."""

from __future__ import annotations

from maxlm.config.derive import Facts
from maxlm.config.derive_model import longest_length, resolve_model
from maxlm.config.schema import RunConfig
from maxlm.model.count import count_non_embedding_parameters, count_parameters


def facts_of(
    config: RunConfig,
    *,
    vocab_size: int,
    train_tokens: int | None,
    num_devices: int,
    platform: str,
    data_shards: int | None = None,
) -> Facts:
    """The facts of a config as loaded; arguments as the fields of `Facts`.

    Raises ConfigError where the vocabulary or the rows' length does not fit the model.
    """
    length = longest_length(config.data)
    model = resolve_model(config.model, vocab_size=vocab_size, length=length)
    return Facts(
        parameters=count_parameters(model),
        non_embedding_parameters=count_non_embedding_parameters(model),
        vocab_size=vocab_size,
        train_tokens=train_tokens,
        num_devices=num_devices,
        platform=platform,
        data_shards=data_shards,
    )
