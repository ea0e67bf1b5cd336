"""SentencePiece models: those trained here (exact for any text) and those of others, as they are.

In goes the content of a `.model` file. A model that changes no text (identity normalisation, no
space put before it, a piece for every byte) is made exact: SentencePiece writes a space as U+2581
and so cannot tell that character from a space; here U+2581 in a text is encoded by its three bytes,
and decoding joins the bytes of the pieces. Other models encode and decode as the library does.

Where no piece of a BPE model crosses the border between two words or lines, nothing is merged across
it either: the ids of a text are those of its words, one after another. Words come again and again,
so each goes to the library once and its ids are remembered.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from maxlm.data.tokenizers.protocol import require_unicode
from maxlm.data.tokenizers.saved import Saved
from maxlm.data.tokenizers.vocabulary import Vocabulary
from maxlm.errors import TokenizerError

FILE = "tokenizer.model"
SPACE = "\u2581"

# A word with the spaces before it, a run of newlines, or spaces before a newline or the end.
_WORDS = re.compile(r" *[^ \n]+|\n+| +")
# Words remembered, and the longest: about 20 MB in all.
_MOST_WORDS, _LONGEST_WORD = 1 << 17, 32

_BPE = 2  # TrainerSpec.model_type

# Types of pieces in a model file (sentencepiece_model.proto).
_UNKNOWN, _CONTROL, _UNUSED, _BYTE = 2, 3, 5, 6


class SentencePieceTokenizer:
    """A SentencePiece model.

    Args:
        model: content of a `.model` file.
        name: where it came from, for messages.

    Attributes:
        parsed: the model file's message, with pieces and rules.

    Raises TokenizerError when it is no SentencePiece model.
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes, name: str = "the model"):
        self._model = model
        self._processor, parsed = _parse(model, name)
        self.parsed = parsed
        ids = self._processor
        self.vocab_size = len(parsed.pieces)
        self.bos_id = _optional(ids.bos_id())
        self.eos_id = _optional(ids.eos_id())
        self.pad_id = _optional(ids.pad_id())
        self.unk_id: int | None = _optional(ids.unk_id())
        self._vocabulary = Vocabulary([_piece_bytes(piece) for piece in parsed.pieces])
        self.exact = _changes_no_text(parsed)
        if self.exact:
            # With a piece for every byte, nothing is unknown.
            self.unk_id = None
            self._words = _Words(self._processor) if _splits_words(parsed) else None
            self._space_ids = np.array(
                [ids.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()], np.int32
            )
        self.hash = self._saved().hash

    def encode(self, text: str) -> list[int]:
        """Ids of `text`."""
        if self.exact and (SPACE in text or self._words is not None):
            return self.encode_batch([text])[0].tolist()
        try:
            return self._processor.encode(text)
        except (RuntimeError, TypeError):
            require_unicode([text])
            raise

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[np.ndarray]:
        """Ids of each text, as int32 arrays."""
        texts = list(texts)
        try:
            if not self.exact:
                return self._encode_parts(texts, num_threads)
            return self._encode_exactly(texts, num_threads)
        except (RuntimeError, TypeError):
            require_unicode(texts)
            raise

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`."""
        if self.exact:
            return self._vocabulary.join(ids).decode("utf-8", "replace")
        return self._processor.decode(self._vocabulary.check(ids))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Bytes of `ids`, id by id; the space that a model puts before a text stays."""
        return self._vocabulary.join(ids)

    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes of each id: int32 [vocab_size]; 0 for specials and unknown."""
        return self._vocabulary.lengths

    def token_text(self, token_id: int) -> str:
        """The piece as SentencePiece writes it (U+2581 is a space)."""
        (number,) = self._vocabulary.check([token_id])
        return self._processor.id_to_piece(number)

    def save(self, folder: str) -> None:
        """Write `tokenizer.model` and the description."""
        self._saved().write(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return (SentencePieceTokenizer, (self._model,))

    def _encode_exactly(self, texts: list[str], num_threads: int) -> list[np.ndarray]:
        if self._words is not None:
            return [self._encode_words(text, self._words) for text in texts]
        parts: list[str] = []
        stops = []
        for text in texts:
            parts += _cut_at_spaces(text) if SPACE in text else [text]
            stops.append(len(parts))
        encoded = self._encode_parts(parts, num_threads)
        return [
            encoded[start] if stop - start == 1 else np.concatenate(encoded[start:stop])
            for start, stop in pairwise([0, *stops])
        ]

    def _encode_words(self, text: str, words: _Words) -> np.ndarray:
        if SPACE not in text:
            found = map(words.__getitem__, _WORDS.findall(text))
            return np.frombuffer(bytearray().join(found), np.int32)
        pieces = (
            self._space_ids if part == SPACE else self._encode_words(part, words)
            for part in _cut_at_spaces(text)
        )
        return np.concatenate([np.zeros(0, np.int32), *pieces])

    def _encode_parts(self, parts: list[str], num_threads: int) -> list[np.ndarray]:
        """Ids of each part; a part that is U+2581 becomes its three bytes if the model is exact."""
        encoded = self._processor.encode_as_numpy(parts, num_threads=num_threads)
        if self.exact:
            for number, part in enumerate(parts):
                if part == SPACE:
                    encoded[number] = self._space_ids
        return encoded

    def _saved(self) -> Saved:
        return Saved.of(self, {FILE: self._model})


def _parse(model: bytes, name: str) -> tuple[Any, Any]:
    import sentencepiece
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2 as model_format

    try:
        parsed = model_format.ModelProto()  # type: ignore[attr-defined]
        parsed.ParseFromString(model)
        if not parsed.pieces:
            raise TokenizerError(f"{name}: no pieces in it ({len(model)} bytes)")
        return sentencepiece.SentencePieceProcessor(model_proto=model), parsed
    except (DecodeError, RuntimeError, TokenizerError) as error:
        raise TokenizerError(
            f"{name}: not a SentencePiece model, or a damaged one: {error}"
        ) from error


def _piece_bytes(piece: Any) -> bytes:
    if piece.type == _BYTE:
        return bytes([int(piece.piece[3:5], 16)])
    if piece.type in (_UNKNOWN, _CONTROL, _UNUSED):
        return b""
    return piece.piece.replace(SPACE, " ").encode("utf-8")


def _changes_no_text(parsed: Any) -> bool:
    rules = parsed.normalizer_spec
    bytes_there = {piece.piece for piece in parsed.pieces if piece.type == _BYTE}
    return (
        len(bytes_there) == 256
        and not rules.precompiled_charsmap
        and not rules.add_dummy_prefix
        and not rules.remove_extra_whitespaces
        and rules.escape_whitespaces
        and not parsed.denormalizer_spec.precompiled_charsmap
    )


def _splits_words(parsed: Any) -> bool:
    """Whether the ids of a text are those of its `_WORDS`, put together.

    No piece may hold a newline beside something else, nor a space after something else.
    """
    if parsed.trainer_spec.model_type != _BPE:
        return False
    pieces = [piece.piece for piece in parsed.pieces]
    lines = all(not piece.strip("\n") for piece in pieces if "\n" in piece)
    return lines and not any(SPACE in piece.lstrip(SPACE) for piece in pieces)


def _cut_at_spaces(text: str) -> Iterator[str]:
    """The text between characters U+2581, and those characters, each by itself."""
    for number, part in enumerate(text.split(SPACE)):
        if number:
            yield SPACE
        yield part


class _Words(dict[str, bytes]):
    """Ids of words as the bytes of int32, made when first asked for."""

    def __init__(self, processor: Any):
        super().__init__()
        self._processor = processor

    def __missing__(self, word: str) -> bytes:
        # One text alone: the call for a list starts a thread.
        ids = array("i", self._processor.encode(word)).tobytes()
        if len(word) <= _LONGEST_WORD:
            if len(self) >= _MOST_WORDS:
                self.clear()  # the text has moved on
            self[word] = ids
        return ids


def _optional(token_id: int) -> int | None:
    return None if token_id < 0 else token_id
