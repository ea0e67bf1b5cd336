"""From texts to the ids that a model continues, as its documents begin, and to what ends them."""

from __future__ import annotations

from maxlm.config.schema import DataConfig
from maxlm.data.document_markers import documents_begin_with_bos
from maxlm.data.tokenizers import Tokenizer
from maxlm.errors import ConfigError


def encode_prompts(tokenizer: Tokenizer, texts: list[str], data: DataConfig) -> list[list[int]]:
    """Ids of each text, with the tokenizer's `bos` first where the training documents have it.

    Raises:
        ConfigError: a text is empty and nothing stands for its beginning.
    """
    begin = (
        [tokenizer.bos_id]
        if tokenizer.bos_id is not None and documents_begin_with_bos(data)
        else []
    )
    prompts = [[*begin, *tokenizer.encode(text)] for text in texts]
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ConfigError(
                f"prompt {i + 1} of {len(prompts)} is empty, and this model's documents begin "
                "with no token of their own: give it some text"
            )
    return prompts


def end_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that end a document: one, or none."""
    return frozenset() if tokenizer.eos_id is None else frozenset({tokenizer.eos_id})
