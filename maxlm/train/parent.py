"""Whether a new run may start from another run's checkpoint: the tokenizer and, for a branch, the data.

In come the checkpoint's metadata and what the new run reads; out comes a `CheckpointError` where
the weights would meet tokens that mean something else, or a branch would not read on where its
parent stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maxlm.data.loader import Loader
from maxlm.errors import CheckpointError


def check_parent(
    loader: Loader, tokenizer_hash: str, metadata: Mapping[str, Any], path: str, step: int
) -> None:
    """Refuse a branch from a checkpoint of another tokenizer or of stores that have changed.

    Stores that only the parent read, up to the branch point, may have changed since.

    Args:
        loader: of the branch; its sources hold the parent's.
        tokenizer_hash: of the branch.
        metadata: of the parent's checkpoint.
        path: of the parent's checkpoint, for the message.
        step: the branch point.

    Raises:
        CheckpointError: with both hashes.
    """
    check_tokenizer(metadata, tokenizer_hash, path)
    theirs = metadata["config"]["data"]["mixture"]
    read_on = {
        name
        for phase in loader.timeline.phases
        if phase.start_step >= step
        for name, weight in phase.weights.items()
        if weight > 0 and name in theirs
    }
    found = loader.hash_of(theirs)
    if read_on and found != metadata["data_hash"]:
        stores = ", ".join(f"{name} ({loader.sources[name].store})" for name in sorted(theirs))
        raise CheckpointError(
            f"{path} was trained on other data: data hash {metadata['data_hash'][:12]}…, now "
            f"{found[:12]}…: one of its token stores was rewritten since: {stores}. A branch reads on "
            "where its parent stopped: restore the store, or let data.mixture name other text alone, "
            "under another name, or take the weights alone with train.init_from"
        )


def check_tokenizer(metadata: Mapping[str, Any], tokenizer_hash: str, path: str) -> None:
    """Refuse weights that were trained with another tokenizer.

    Raises:
        CheckpointError: with both hashes.
    """
    theirs = metadata["tokenizer_hash"]
    if theirs != tokenizer_hash:
        raise CheckpointError(
            f"{path} was trained with another tokenizer ({theirs[:12]}…) than this run's data was "
            f"written with ({tokenizer_hash[:12]}…): its weights know other tokens. Tokenize the text "
            "with that run's tokenizer (`maxlm data tokenize --tokenizer RUN/tokenizer`), or train "
            "from the beginning"
        )
