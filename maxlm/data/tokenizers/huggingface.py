"""Tokenizers of the `tokenizers` library: a `tokenizer.json`, or GPT-2's vocabulary and merges.

In go the content of the files; ids are the library's own, with two settings: a special's name in a
text is plain text, and truncation and padding are off. What each id stands for in bytes is read
off the tokenizer's decoder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from maxlm.data.tokenizers import huggingface_spec as spec
from maxlm.data.tokenizers.protocol import require_unicode
from maxlm.data.tokenizers.saved import SPECIALS, Saved
from maxlm.data.tokenizers.vocabulary import Vocabulary

FILE = "tokenizer.json"
VOCABULARY_FILE, MERGES_FILE = "vocab.json", "merges.txt"


class HuggingFaceTokenizer:
    """A `tokenizers` pipeline.

    Args:
        kind: `hf` or `gpt2`.
        files: `{"tokenizer.json": …}`, or `{"vocab.json": …, "merges.txt": …}`.
        specials: `bos_id`, `eos_id`, `pad_id`, `unk_id`; None: by their usual names
            (`huggingface_spec.special_ids`), `config` first.
        config: content of a `tokenizer_config.json`, which names the specials.
        name: where the files came from, for messages.

    Raises TokenizerError when the files cannot be used.
    """

    def __init__(
        self,
        kind: str,
        files: dict[str, bytes],
        specials: dict[str, int | None] | None = None,
        config: dict[str, Any] | None = None,
        name: str = "the tokenizer",
    ):
        # Processes parallelise outside; the library's own threads would fight with theirs.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.kind = kind
        self._files = files
        if kind == "gpt2":
            self._pipeline = spec.gpt2_pipeline(files[VOCABULARY_FILE], files[MERGES_FILE], name)
        else:
            self._pipeline = spec.pipeline(files[FILE], name)
        described = spec.describe(self._pipeline)
        self._vocabulary = Vocabulary(spec.piece_bytes(described))
        self.vocab_size = len(self._vocabulary)
        self.exact = spec.changes_no_text(described)
        chosen = specials or spec.special_ids(described, config or {})
        self.bos_id, self.eos_id, self.pad_id, self.unk_id = (chosen[key] for key in SPECIALS)
        self.hash = self._saved().hash

    def encode(self, text: str) -> list[int]:
        """Ids of `text`."""
        try:
            return self._pipeline.encode(text, add_special_tokens=False).ids
        except TypeError:
            require_unicode([text])
            raise

    def encode_markup(self, text: str) -> list[int]:
        """Like `encode`, but a special's name stands for the special: for text that a template made."""
        self._pipeline.encode_special_tokens = False
        try:
            return self.encode(text)
        finally:
            self._pipeline.encode_special_tokens = True

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[np.ndarray]:
        """Ids of each text, as int32 arrays.

        With `num_threads` above 1 the library uses as many threads as RAYON_NUM_THREADS says.
        """
        texts = list(texts)
        if num_threads > 1:
            os.environ["TOKENIZERS_PARALLELISM"] = "true"
        try:
            batch = self._pipeline.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:
            require_unicode(texts)
            raise
        finally:
            if num_threads > 1:
                os.environ["TOKENIZERS_PARALLELISM"] = "false"
        return [np.array(encoding.ids, np.int32) for encoding in batch]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`."""
        if self.exact:
            return self._vocabulary.join(ids).decode("utf-8", "replace")
        return self._pipeline.decode(self._vocabulary.check(ids), skip_special_tokens=True)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Bytes of `ids`, id by id."""
        return self._vocabulary.join(ids)

    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes of each id: int32 [vocab_size]; 0 for specials and unused ids."""
        return self._vocabulary.lengths

    def token_text(self, token_id: int) -> str:
        """The token as the vocabulary writes it; empty for an unused id."""
        (number,) = self._vocabulary.check([token_id])
        return self._pipeline.id_to_token(number) or ""

    def as_prompted(self) -> HuggingFaceTokenizer:
        """This tokenizer, without `bos_id` where its own rule puts none before a text.

        A tokenizer.json may name a `bos` that its models never saw (GPT-2, Qwen); what transformers
        reads as a prompt is what its post-processor makes of the text.
        """
        ids = self._pipeline.encode("a", add_special_tokens=True).ids
        if self.bos_id is None or ids[:1] == [self.bos_id]:
            return self
        specials = {key: getattr(self, key) for key in SPECIALS} | {"bos_id": None}
        return HuggingFaceTokenizer(self.kind, self._files, specials)

    def to_json(self) -> str:
        """The pipeline as the text of a `tokenizer.json`."""
        content = self._files.get(FILE)
        return self._pipeline.to_str() if content is None else content.decode("utf-8")

    def save(self, folder: str) -> None:
        """Write the files and the description."""
        self._saved().write(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        specials = {key: getattr(self, key) for key in SPECIALS}
        return (HuggingFaceTokenizer, (self.kind, self._files, specials))

    def _saved(self) -> Saved:
        return Saved.of(self, self._files)
