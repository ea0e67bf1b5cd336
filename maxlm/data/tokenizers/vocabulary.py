"""The bytes that each id of a vocabulary stands for, and joining them.

In go the bytes of every id; out come the bytes or text of a sequence of ids, with ids out of range
refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from maxlm.errors import TokenizerError


class Vocabulary:
    """Bytes by id; specials, unknowns and unused ids stand for no bytes."""

    def __init__(self, pieces: list[bytes]):
        self._pieces = pieces
        self.lengths = np.fromiter(map(len, pieces), np.int32, len(pieces))

    def __len__(self) -> int:
        return len(self._pieces)

    def join(self, ids: Iterable[int]) -> bytes:
        """Bytes of `ids`. Raises TokenizerError when one is out of range."""
        return b"".join([self._pieces[token_id] for token_id in self.check(ids)])

    def check(self, ids: Iterable[int]) -> list[int]:
        """The ids as Python ints. Raises TokenizerError when one is out of range."""
        numbers = [int(token_id) for token_id in ids]
        if numbers and (min(numbers) < 0 or max(numbers) >= len(self._pieces)):
            size = len(self._pieces)
            position = next(i for i, n in enumerate(numbers) if not 0 <= n < size)
            raise TokenizerError(
                f"id {numbers[position]} at position {position} is not in the vocabulary: "
                f"its {size} ids are 0 … {size - 1}"
            )
        return numbers
