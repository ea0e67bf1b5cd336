"""What every tokenizer can do, whatever its kind: text to ids and back, and the bytes of each id.

Text goes in as Unicode strings, ids come out; ids go in, text or its UTF-8 bytes come out. `exact`
says whether the way there and back loses nothing, for any text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from maxlm.errors import TokenizerError


@runtime_checkable
class Tokenizer(Protocol):
    """A tokenizer of any kind.

    Attributes:
        kind: `byte`, `sentencepiece`, `hf` or `gpt2`.
        vocab_size: ids are 0 … vocab_size - 1.
        bos_id: begins a document, or None.
        eos_id: ends a document, or None.
        pad_id: fills, or None.
        unk_id: stands for what cannot be encoded, or None.
        exact: whether, for every text, `decode(encode(text)) == text` and the `token_bytes` of its
            ids sum to its UTF-8 length. False for a tokenizer that normalises text, puts a space
            before it or has unknowns.
        hash: sha256 (hex) over kind, special ids and the content of its files; the same wherever
            the files lie.
    """

    kind: str
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    unk_id: int | None
    exact: bool
    hash: str

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, no specials added; a special's name in the text is plain text."""
        ...

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[np.ndarray]:
        """Ids of each text, as int32 arrays."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; specials stand for nothing, broken UTF-8 becomes U+FFFD.

        Raises TokenizerError when an id is out of range.
        """
        ...

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """UTF-8 bytes of `ids`, id by id: the bytes of a + b are the bytes of a, then those of b.

        A token may be a part of a character, so these need not be whole UTF-8.
        Raises TokenizerError when an id is out of range.
        """
        ...

    def token_bytes(self) -> np.ndarray:
        """How many UTF-8 bytes each id stands for: int32 [vocab_size], 0 for specials."""
        ...

    def token_text(self, token_id: int) -> str:
        """How the vocabulary writes a token, for display. Raises TokenizerError."""
        ...

    def save(self, folder: str) -> None:
        """Write the tokenizer to a folder, local or remote, for `load_tokenizer(folder)`."""
        ...


def require_unicode(texts: Iterable[str]) -> None:
    """Raise TokenizerError when a text has a lone surrogate, which no UTF-8 can hold."""
    for number, text in enumerate(texts):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"text {number} has a lone surrogate U+{ord(text[error.start]):04X} at character "
                f"{error.start}, which is no Unicode text; read the text as UTF-8, or drop it"
            ) from error
