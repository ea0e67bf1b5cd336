"""A config of a run that has not begun, resolved as the run will resolve it.

In: a config as loaded and what is known of the hardware; out: the config without open values. What only
token stores can tell comes from them where they are there, and from the model's preset otherwise.
"""

from __future__ import annotations

from maxlm.config.derive import Resolved, resolve
from maxlm.config.schema import RunConfig
from maxlm.data.stored_facts import first_vocab_size, stored_facts
from maxlm.model.facts import facts_of


def resolve_before_run(
    config: RunConfig, *, num_devices: int, platform: str, data_shards: int, vocab_size: int | None
) -> Resolved:
    """Resolve a config.

    Args:
        config: as loaded.
        num_devices: of the mesh.
        platform: `tpu` or `gpu`, or `cpu` of this machine's devices.
        data_shards: over how many the batch is split.
        vocab_size: where neither the config nor a token store tells.

    Raises:
        ConfigError: the config does not fit itself, or its vocabulary is not known.
        DataError, TokenizerError: a token store that is there cannot be used.
    """
    stored = stored_facts(config.data)
    facts = facts_of(
        config,
        vocab_size=first_vocab_size(
            stored.vocab_size,
            config.model.vocab_size,
            vocab_size,
            otherwise="model.vocab_size=N",
        ),
        train_tokens=stored.train_tokens,
        num_devices=num_devices,
        platform=platform,
        data_shards=data_shards,
    )
    return resolve(config, facts)
