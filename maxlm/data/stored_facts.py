"""What the token stores of a config tell of themselves, where they are there.

In: the data section of a config; out: the tokenizer's vocabulary and the tokens read in one epoch, or
None for a config whose stores are still to be made or lie elsewhere.
"""

from __future__ import annotations

from typing import NamedTuple

from maxlm import storage
from maxlm.config.schema import DataConfig
from maxlm.data.open_sources import open_sources
from maxlm.data.store import MANIFEST, TokenStore
from maxlm.errors import ConfigError


class StoredFacts(NamedTuple):
    """Of all stores of a mixture.

    Attributes:
        vocab_size: of their tokenizer; None: not all of them are there.
        train_tokens: of one epoch; None likewise.
    """

    vocab_size: int | None
    train_tokens: int | None


def stored_facts(data: DataConfig) -> StoredFacts:
    """What is known. Raises DataError, TokenizerError or ConfigError as `open_sources` does."""
    stores = [source.store for source in data.mixture.values()]
    if not stores or not all(storage.exists(storage.join(s, MANIFEST)) for s in stores):
        return StoredFacts(None, None)
    tokens = sum(source.tokens.num_tokens for source in open_sources(data).values())
    return StoredFacts(TokenStore(stores[0]).tokenizer().vocab_size, tokens)


def first_vocab_size(*known: int | None, otherwise: str) -> int:
    """The first vocabulary that is known. Raises ConfigError saying what to add where none is."""
    found = next((size for size in known if size), None)
    if found is None:
        raise ConfigError(
            "model.vocab_size is the tokenizer's, which is not known here, as the config names no "
            f"token store that exists: add {otherwise}"
        )
    return found
