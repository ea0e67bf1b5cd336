"""Training of SentencePiece models: what is learned, what repeats, what is refused."""

import hashlib
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tiny_tokenizers import CORPUS, trained

from maxlm.data.tokenizers import sentencepiece_model, train_sentencepiece
from maxlm.data.tokenizers.sentencepiece_model import SentencePieceTokenizer
from maxlm.data.tokenizers.sentencepiece_training import thin, training_lines
from maxlm.errors import DataError, TokenizerError

KINDS = ("bpe", "unigram")


@pytest.mark.parametrize("kind", KINDS)
def test_fixed_ids_come_first(kind):
    tokenizer = trained(kind)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, None)
    assert [tokenizer.decode_bytes([i]) for i in (3, 4, 5)] == [b"\n", b"\n\n", b"\t"]
    assert [tokenizer.decode_bytes([6 + byte]) for byte in range(256)] == [
        bytes([byte]) for byte in range(256)
    ]
    assert tokenizer.vocab_size == 400


@pytest.mark.parametrize("kind", KINDS)
def test_frequent_words_become_one_token_and_lines_do_not_mix(kind):
    tokenizer = trained(kind)
    assert len(tokenizer.encode(" quick")) == 1
    pieces = [tokenizer.decode_bytes([i]) for i in range(262, tokenizer.vocab_size)]
    assert not any(mark in piece for piece in pieces for mark in (b"\n", b"\t", b"\r", b"\x00"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_text_gives_the_same_model_in_another_process(kind):
    code = f"import sys; from tiny_tokenizers import trained; print(trained({kind!r}).hash, end='')"
    environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7"}
    other = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert other.stdout == trained(kind).hash


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from(["the fox", " ", "\n", "\n\n", "\t", "Würde人", "\r\n"]), min_size=1)
)
def test_a_long_text_gives_the_ids_that_the_library_gives_for_the_whole(kind, words):
    tokenizer = trained(kind)
    text = "".join(words) * (5000 // len("".join(words)) + 1)
    assert tokenizer.encode(text) == tokenizer._processor.encode(text)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(["the", "fox", "s", " ", "  ", "\n", "\n\n", "\t", "人", "\r"]), max_size=40
    )
)
def test_words_put_together_are_the_ids_that_the_library_gives_for_the_whole(words):
    tokenizer, text = trained("bpe"), "".join(words)
    assert tokenizer._words is not None
    for _ in range(2):  # when first seen, and remembered
        assert tokenizer.encode_batch([text])[0].tolist() == tokenizer._processor.encode(text)


@pytest.mark.parametrize("piece", ["e▁", "x\n", "▁\n"])
def test_a_model_with_a_piece_across_words_or_lines_is_given_whole_texts(piece):
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(trained("bpe")._model)
    model.pieces.add(piece=piece, score=0.0)
    tokenizer = SentencePieceTokenizer(model.SerializeToString())
    assert tokenizer._words is None
    text = "the fox\n \n the fox"
    ids = tokenizer.encode_batch([text])[0].tolist()
    assert ids == tokenizer._processor.encode(text) == tokenizer.encode(text)
    # Newlines are symbols here, which the library merges with nothing; other models need not.
    assert tokenizer.vocab_size - 1 in ids or "\n" in piece


def test_remembered_words_are_forgotten_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(sentencepiece_model, "_MOST_WORDS", 3)
    tokenizer = SentencePieceTokenizer(trained("bpe")._model)
    text = " ".join(["the quick brown fox", "x" * 100, "jumps over the lazy dog"] * 3)
    assert tokenizer.encode(text) == tokenizer._processor.encode(text)
    assert 0 < len(tokenizer._words) <= 3 and " " + "x" * 100 not in tokenizer._words


def test_the_kinds_learn_differently():
    assert trained("bpe").hash != trained("unigram").hash


def test_very_long_lines_are_learned_from():
    # SentencePiece alone would leave out a line of this length and find no text at all.
    line = " ".join(["abracadabra", "simsalabim"] * 20_000)
    tokenizer = train_sentencepiece([line], vocab_size=280)
    assert len(tokenizer.encode(" abracadabra")) < len(" abracadabra") / 2


def test_a_vocabulary_too_large_for_the_text_is_refused_with_the_largest_that_works():
    with pytest.raises(TokenizerError, match=r"of 50000 is too large .* at most (\d+)") as caught:
        train_sentencepiece(CORPUS, vocab_size=50_000)
    largest = int(str(caught.value).split("at most ")[1].split()[0])
    assert train_sentencepiece(CORPUS, vocab_size=largest).vocab_size == largest


def test_a_vocabulary_too_small_is_refused_with_what_it_needs():
    with pytest.raises(TokenizerError, match=r"262 ids are fixed"):
        train_sentencepiece(CORPUS, vocab_size=100)
    with pytest.raises(TokenizerError, match=r"of 270 is too small .* need \d+ ids"):
        train_sentencepiece(CORPUS, vocab_size=270)


@pytest.mark.parametrize("texts", [[], [""], [" \n\t \r\n"], ["\x00\u2581"]], ids=repr)
def test_a_corpus_without_text_is_refused(texts):
    with pytest.raises(TokenizerError, match="no text"):
        train_sentencepiece(texts, vocab_size=300)


def test_an_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(TokenizerError, match=r"'unigrm' .*did you mean 'unigram'"):
        train_sentencepiece(CORPUS, vocab_size=300, kind="unigrm")


def test_a_coverage_out_of_range_is_refused():
    with pytest.raises(TokenizerError, match=r"coverage 0.5 .*0\.9"):
        train_sentencepiece(CORPUS, vocab_size=300, character_coverage=0.5)


def test_an_error_in_the_texts_comes_through_as_it_is():
    def texts():
        yield CORPUS[0]
        raise DataError("line 3 is broken")

    with pytest.raises(DataError, match="line 3 is broken"):
        train_sentencepiece(texts(), vocab_size=300)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=30)), st.integers(1, 60))
def test_thinning_keeps_every_nth_line_within_the_limit(lines, max_bytes):
    kept = thin(lines, max_bytes)
    assert len(kept) <= 1 or sum(len(line.encode()) for line in kept) <= max_bytes
    strides = {2**power for power in range(10)}
    assert any(kept == lines[::stride] for stride in strides)


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="ab \n界", max_size=200), st.integers(1, 60))
def test_lines_to_learn_from_hold_the_text(text, repeats):
    long = text * repeats
    lines = list(training_lines([long]))
    assert all(len(line.encode()) <= 8192 and not line.isspace() for line in lines)
    assert "".join(lines).replace(" ", "") == long.replace("\n", "").replace(" ", "")


def test_a_limited_corpus_gives_a_model_of_the_lines_kept():
    lines = [f"line {number} about foxes and dogs" for number in range(1000)]
    size = sum(map(len, lines))
    limited = train_sentencepiece(["\n".join(lines)], vocab_size=290, max_bytes=size // 3)
    assert limited.hash == train_sentencepiece(lines[::4], vocab_size=290).hash
    digest = hashlib.sha256(limited._model).hexdigest()
    assert digest != hashlib.sha256(train_sentencepiece(lines, vocab_size=290)._model).hexdigest()
