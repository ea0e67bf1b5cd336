"""Places for what a long command writes at its end, tried at its beginning."""

from __future__ import annotations

import contextlib


def check_place(path: str) -> None:
    """Raise ConfigError where nothing can be written; what is there stays as it is.

    Args:
        path: of a file, local or remote.
    """
    from maxlm import storage
    from maxlm.errors import ConfigError, StorageError

    try:
        if not storage.exists(path):
            storage.write_text(path, "")  # the only sure way to know
            # A bucket may allow to create and not to delete.
            with contextlib.suppress(StorageError):
                storage.remove_file(path)
        elif not storage.is_remote(path):
            with storage.typed_errors(path), open(path, "ab"):
                pass
    except StorageError as error:
        raise ConfigError(f"nothing can be written there: {error}") from error
