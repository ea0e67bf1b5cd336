"""The byte tokenizer: ids 0 … 255 are UTF-8 bytes, 256 is `<|endoftext|>` (both ends of a document).

It needs no file and no training, and loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from maxlm.data.tokenizers.protocol import require_unicode
from maxlm.data.tokenizers.saved import Saved
from maxlm.data.tokenizers.vocabulary import Vocabulary

END_OF_TEXT = 256


class ByteTokenizer:
    """A token per UTF-8 byte."""

    kind = "byte"
    vocab_size = 257
    bos_id: int | None = END_OF_TEXT
    eos_id: int | None = END_OF_TEXT
    pad_id: int | None = None
    unk_id: int | None = None
    exact = True

    def __init__(self) -> None:
        self._vocabulary = Vocabulary([bytes([value]) for value in range(256)] + [b""])
        self.hash = self._saved().hash

    def encode(self, text: str) -> list[int]:
        """Ids of `text`: its UTF-8 bytes."""
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[np.ndarray]:
        """Ids of each text, as int32 arrays (`num_threads` has nothing to speed up)."""
        try:
            return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]
        except UnicodeEncodeError:
            require_unicode(texts)
            raise

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; broken UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Bytes of `ids`."""
        return self._vocabulary.join(ids)

    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes of each id: int32 [257]; 1, and 0 for `<|endoftext|>`."""
        return self._vocabulary.lengths

    def token_text(self, token_id: int) -> str:
        """The character of an ASCII byte that can be seen, `<0xNN>` for the others."""
        (number,) = self._vocabulary.check([token_id])
        if number == END_OF_TEXT:
            return "<|endoftext|>"
        return chr(number) if 0x20 < number < 0x7F else f"<0x{number:02X}>"

    def save(self, folder: str) -> None:
        """Write the description; there are no other files."""
        self._saved().write(folder)

    def _saved(self) -> Saved:
        return Saved.of(self, {})
