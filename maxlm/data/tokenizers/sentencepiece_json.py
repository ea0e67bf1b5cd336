"""A SentencePiece model as a pipeline of the tokenizers library.

In: one of our SentencePiece tokenizers; out: the same vocabulary as BPE, with the merges that its scores
imply, or as Unigram. One thing differs: that library cannot tell the character U+2581 from a space.
"""

from __future__ import annotations

from typing import Any

from maxlm.data.tokenizers.sentencepiece_model import SPACE, SentencePieceTokenizer
from maxlm.errors import TokenizerError

_UNIGRAM, _BPE = 1, 2  # TrainerSpec.model_type
_UNKNOWN, _CONTROL, _BYTE = 2, 3, 6  # types of pieces


def sentencepiece_pipeline(tokenizer: SentencePieceTokenizer) -> Any:
    """The pipeline. Raises TokenizerError for a model type other than BPE and unigram."""
    from tokenizers import AddedToken, Regex, decoders, models, normalizers
    from tokenizers import Tokenizer as Pipeline

    parsed = tokenizer.parsed
    pieces = list(parsed.pieces)
    fallback = any(piece.type == _BYTE for piece in pieces)
    unknown = next((i for i, piece in enumerate(pieces) if piece.type == _UNKNOWN), None)
    kind = parsed.trainer_spec.model_type
    model: Any
    if kind == _BPE:
        model = models.BPE(
            vocab={piece.piece: i for i, piece in enumerate(pieces)},
            merges=_merges(pieces),
            unk_token=None if unknown is None else pieces[unknown].piece,
            fuse_unk=True,
            byte_fallback=fallback,
        )
    elif kind == _UNIGRAM:
        scores = [(piece.piece, piece.score) for piece in pieces]
        model = models.Unigram(scores, unk_id=unknown, byte_fallback=fallback)
    else:
        raise TokenizerError(
            "only BPE and unigram models of SentencePiece have a tokenizer.json, and this is of "
            f"model_type {kind}"
        )
    pipeline = Pipeline(model)
    rules = parsed.normalizer_spec
    steps: list[Any] = []
    if rules.precompiled_charsmap:
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    pipeline.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if rules.add_dummy_prefix else []
    pipeline.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    specials = [piece.piece for piece in pieces if piece.type in (_UNKNOWN, _CONTROL)]
    pipeline.add_special_tokens([AddedToken(text, normalized=False) for text in specials])
    return pipeline


def _merges(pieces: list[Any]) -> list[tuple[str, str]]:
    """Pairs in the order in which SentencePiece merges them: by the score of what they make."""
    ids = {p.piece: i for i, p in enumerate(pieces) if p.type not in (_UNKNOWN, _CONTROL, _BYTE)}
    found: list[tuple[float, int, str, str]] = []
    for number, piece in enumerate(pieces):
        text = piece.piece
        if text not in ids:
            continue
        cuts = [(text[:at], text[at:]) for at in range(1, len(text))]
        pairs = [(left, right) for left, right in cuts if left in ids and right in ids]
        for left, right in sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]])):
            found.append((-piece.score, number, left, right))
    found.sort(key=lambda entry: entry[:2])
    return [(left, right) for _, _, left, right in found]
