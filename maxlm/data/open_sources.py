"""Opens the token stores of a mixture and checks that they belong together.

In comes the data section of the config; out go the sources by name. Tokens of two tokenizers in one
run would be noise that no later check could see, so stores must agree with each other and with
`data.tokenizer`.
"""

from __future__ import annotations

from maxlm.config.schema import DataConfig, Duration
from maxlm.data.loader import Loader, Source
from maxlm.errors import ConfigError, DataError


def open_sources(data: DataConfig) -> dict[str, Source]:
    """Open every source of `data.mixture`; a store named twice is opened once.

    Raises ConfigError when the mixture is empty, DataError when a store or split cannot be read,
    TokenizerError when `data.tokenizer` cannot, and DataError when tokenizers differ.
    """
    from maxlm.data.store import TokenStore

    if not data.mixture:
        raise ConfigError(
            "data.mixture is empty: name at least one token store, for example "
            "data.mixture.books.store=PATH (`maxlm data tokenize` writes one)"
        )
    stores = {
        path: TokenStore(path)
        for path in dict.fromkeys(source.store for source in data.mixture.values())
    }
    hashes = {path: str(store.manifest["tokenizer"]["hash"]) for path, store in stores.items()}
    check_tokenizers(
        {name: (source.store, hashes[source.store]) for name, source in data.mixture.items()},
        data.tokenizer,
    )
    return {
        name: Source(
            tokens=stores[source.store].split(source.split),
            hash=stores[source.store].hash,
            split=source.split,
            store=source.store,
        )
        for name, source in data.mixture.items()
    }


def open_loader(data: DataConfig, *, batch_size: int, total: Duration | None) -> Loader:
    """Open the token stores of `data.mixture` and lay out the run.

    Raises ConfigError when the mixture is empty, and DataError when a store is damaged, lacks the
    split, or was written with another tokenizer than the others or than `data.tokenizer`.
    """
    return Loader(open_sources(data), data, batch_size=batch_size, total=total)


def check_tokenizers(stores: dict[str, tuple[str, str]], tokenizer: str | None) -> None:
    """Refuse stores of different tokenizers, or of another one than `tokenizer`.

    Args:
      stores: by source name, the store's folder and its tokenizer's hash.
      tokenizer: path or name that the config demands, if any.

    Raises DataError naming both and their hashes.
    """
    first, (first_path, first_hash) = next(iter(stores.items()))
    for name, (path, found) in stores.items():
        if found != first_hash:
            raise DataError(
                f"sources '{first}' and '{name}' were written with different tokenizers: "
                f"{first_path} has {first_hash[:12]}…, {path} has {found[:12]}…; "
                "tokenize one of them again with the other's tokenizer"
            )
    if tokenizer is None:
        return
    from maxlm.data.tokenizers import load_tokenizer

    wanted = load_tokenizer(tokenizer).hash
    if wanted != first_hash:
        raise DataError(
            f"source '{first}' ({first_path}) was written with the tokenizer {first_hash[:12]}…, "
            f"but data.tokenizer is {tokenizer}, {wanted[:12]}…: unset data.tokenizer to use the "
            "store's own, or tokenize the text again"
        )
