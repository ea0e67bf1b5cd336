"""Whether the documents that a model was trained on begin with `bos`, which prompts must then have."""

from __future__ import annotations

from maxlm.config.schema import DataConfig
from maxlm.data.store import TokenStore
from maxlm.errors import DataError, StorageError


def documents_begin_with_bos(data: DataConfig) -> bool:
    """Whether a store begins its documents with `bos`; what `tokenize` does where none is left."""
    for source in data.mixture.values():
        try:
            settings = TokenStore(source.store).manifest.get("settings", {})
        except (DataError, StorageError):
            continue  # a model is used where its data is not
        return settings.get("document_markers", "both") in ("both", "bos")
    return True
