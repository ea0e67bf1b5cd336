"""Training of SentencePiece models that lose nothing, whatever the text.

In go texts and a vocabulary size; out comes a tokenizer. Text is not normalised, spaces stay where
they are, unseen characters become bytes, newlines and tabs are tokens of their own. The same texts
give the same model, on any machine.

Ids: 0 `<unk>` (never used), 1 `<s>` begins a document, 2 `</s>` ends it, then newline, two
newlines, tab, then the 256 bytes, then what was learned. There is no padding id.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator

from maxlm.data.tokenizers.sentencepiece_model import SentencePieceTokenizer
from maxlm.errors import TokenizerError, did_you_mean

KINDS = ("bpe", "unigram")

# SentencePiece leaves out longer sentences silently; lines are cut well below.
_MAX_SENTENCE_BYTES = 16384
_MAX_LINE_CHARACTERS = 2048

# A newline or a tab inside a piece would tie words of two lines together.
_SYMBOLS = ("\n", "\n\n", "\t")

# Where training text is cut: U+2581 and U+2585 are SentencePiece's own marks for space and unknown
# (it drops a sentence with the second); it takes a NUL for broken text, and a lone surrogate is.
_CUTS = re.compile("[\r\n\x00\u2581\u2585\ud800-\udfff]+")

# Sums of floats depend on how the work is divided, so the division is fixed.
_NUM_THREADS = 4


def train_sentencepiece(
    texts: Iterable[str],
    *,
    vocab_size: int,
    kind: str = "bpe",
    character_coverage: float = 0.9995,
    max_bytes: int = 200_000_000,
) -> SentencePieceTokenizer:
    """Train a tokenizer.

    Args:
        texts: documents; read once, never all in memory.
        vocab_size: ids in all, the 262 fixed ones included.
        kind: `bpe` or `unigram`.
        character_coverage: share of the text's characters that get a piece; the rarest become
            bytes.
        max_bytes: of a larger corpus, lines spread evenly over it, at most this many bytes of
            UTF-8, are learned from.

    Raises:
        TokenizerError: the kind is unknown, there is no text, or the vocabulary is too small or
            too large for it.
    """
    import sentencepiece

    if kind not in KINDS:
        raise TokenizerError(
            f"no SentencePiece kind '{kind}'{did_you_mean(kind, KINDS)}; there are: "
            + ", ".join(KINDS)
        )
    if not 0.9 <= character_coverage <= 1:
        raise TokenizerError(f"character coverage {character_coverage} is not within 0.9 … 1")
    fixed = 3 + len(_SYMBOLS) + 256
    if vocab_size <= fixed:
        raise TokenizerError(
            f"a vocabulary of {vocab_size} is too small: {fixed} ids are fixed "
            f"(3 specials, {len(_SYMBOLS)} of newline and tab, 256 bytes); ask for more"
        )
    # Held as a list: an error raised by the texts must not cross SentencePiece's C++.
    lines = thin(training_lines(texts), max_bytes)
    if not lines:
        raise TokenizerError("the corpus has no text to learn from: it is empty or blank")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=kind,
            character_coverage=character_coverage,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            split_digits=True,
            user_defined_symbols=list(_SYMBOLS),
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            max_sentence_length=_MAX_SENTENCE_BYTES,
            num_threads=_NUM_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explained(error, vocab_size, sum(map(_utf8_bytes, lines))) from error
    return SentencePieceTokenizer(model.getvalue())


def training_lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines to learn from: cut at line ends and marks, and long ones at a space; blank ones go."""
    for text in texts:
        for line in _CUTS.split(text):
            yield from _pieces_of_line(line)


def thin(lines: Iterable[str], max_bytes: int) -> list[str]:
    """Every line, or of a larger corpus every 2nd, 4th, … so that at most `max_bytes` stay.

    One pass; holds no more than that at any time; no randomness.
    """
    kept: list[str] = []
    stride, held = 1, 0
    for number, line in enumerate(lines):
        if number % stride:
            continue
        kept.append(line)
        held += _utf8_bytes(line)
        while held > max_bytes and len(kept) > 1:
            kept = kept[::2]
            stride *= 2
            held = sum(map(_utf8_bytes, kept))
    return kept


def _pieces_of_line(line: str) -> Iterator[str]:
    start = 0
    while start < len(line):
        stop = start + _MAX_LINE_CHARACTERS
        if stop < len(line):
            space = line.rfind(" ", start + 1, stop)
            stop = space if space > start else stop
        part = line[start:stop]
        if not part.isspace():
            yield part
        start = stop


def _utf8_bytes(line: str) -> int:
    return len(line) if line.isascii() else len(line.encode("utf-8"))


def _explained(error: RuntimeError, vocab_size: int, num_bytes: int) -> TokenizerError:
    """SentencePiece's complaint in plain words, with its numbers."""
    text = str(error)
    if high := re.search(r"Vocabulary size too high \(\d+\).*?<= (\d+)", text):
        return TokenizerError(
            f"a vocabulary of {vocab_size} is too large for this corpus: its {num_bytes:,} bytes "
            f"give at most {high[1]} ids; ask for at most {high[1]}, or train on more text"
        )
    if low := re.search(r"smaller than required_chars. (\d+) vs (\d+)", text):
        return TokenizerError(
            f"a vocabulary of {vocab_size} is too small for this corpus: its characters, the bytes "
            f"and the specials alone need {low[2]} ids; ask for more, or lower the character "
            "coverage, so that rare characters become bytes"
        )
    return TokenizerError(f"SentencePiece could not train: {text}")
