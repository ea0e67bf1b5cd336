"""What an exact tokenizer of any kind promises, for any text."""

import pickle

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import EXACT, exact_tokenizer

from maxlm.data.tokenizers import Tokenizer
from maxlm.errors import TokenizerError

MARKS = ["▁", "▅", "<s>", "</s>", "<unk>", "<|endoftext|>", "<0x41>", "\r\n", "\n\n\n", "    "]
TRICKY = [
    "",
    "▁",
    "▁▁ ▁ ",
    " leading and trailing ",
    "two  spaces\tand tabs\t\t",
    "line\nline\r\nline\rline\n\n\n\n",
    "\x00\x01\x1b\x7f\x80\x85\xa0",
    "\u0301combining e\u0301 \u200d\u200b\ufeff\u2028\u2029\ufffd\ufffe\uffff",
    "<s>text</s><unk><0x41><|endoftext|>",
    "ﬁ ① Ａ ｶﾞ Å ẛ̣ 한 각",
    "👩‍👩‍👧‍👦 🏳️‍🌈 \U0010ffff\U000e0001",
    "▅ ▁▅▁ \ue000",
    "x" * 50_000,
    "the fox " * 10_000,
    "the fox\n\n\nand ▁ the dog\r\n\n" * 1000 + "▁",
]

# Text as it comes, with the marks that tokenizers give a meaning mixed in.
any_text = st.lists(st.one_of(st.text(), st.sampled_from(MARKS)), max_size=8).map("".join)


@pytest.fixture(params=EXACT)
def tokenizer(request):
    return exact_tokenizer(request.param)


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=200, deadline=None)
@given(text=st.one_of(st.text(), any_text))
@example("▁")
def test_any_text_comes_back_and_its_bytes_are_counted(name, text):
    tokenizer = exact_tokenizer(name)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
    assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} & set(ids)


@pytest.mark.parametrize("text", TRICKY, ids=range(len(TRICKY)))
def test_tricky_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


def test_a_batch_gives_the_ids_of_each_text_as_int32(tokenizer):
    batch = tokenizer.encode_batch(TRICKY)
    assert [array.tolist() for array in batch] == [tokenizer.encode(text) for text in TRICKY]
    assert {array.dtype for array in batch} == {np.dtype(np.int32)}
    threaded = tokenizer.encode_batch(TRICKY, num_threads=2)
    assert [array.tolist() for array in threaded] == [array.tolist() for array in batch]
    assert tokenizer.encode_batch([]) == []


def test_bytes_of_ids_are_joined_id_by_id(tokenizer):
    ids = tokenizer.encode("Würde 人 fox")
    assert (
        b"".join(tokenizer.decode_bytes([token_id]) for token_id in ids) == "Würde 人 fox".encode()
    )
    assert [len(tokenizer.decode_bytes([i])) for i in range(tokenizer.vocab_size)] == (
        tokenizer.token_bytes().tolist()
    )


def test_specials_stand_for_nothing(tokenizer):
    assert tokenizer.token_bytes()[[tokenizer.bos_id, tokenizer.eos_id]].tolist() == [0, 0]
    ids = [tokenizer.bos_id, *tokenizer.encode("fox"), tokenizer.eos_id]
    assert tokenizer.decode(ids) == "fox"


def test_a_part_of_a_character_decodes_to_the_replacement_character(tokenizer):
    (part, *_) = tokenizer.encode("\U0001f98a")
    assert tokenizer.decode([part]) == "\ufffd"


@pytest.mark.parametrize("beyond", [0, 1000, -300])
def test_an_id_out_of_range_is_named(tokenizer, beyond):
    bad = tokenizer.vocab_size + beyond if beyond >= 0 else -1
    for decode in (tokenizer.decode, tokenizer.decode_bytes):
        with pytest.raises(
            TokenizerError, match=rf"id {bad} at position 1 .*{tokenizer.vocab_size}"
        ):
            decode([5, bad])
    with pytest.raises(TokenizerError, match=f"id {bad}"):
        tokenizer.token_text(bad)


def test_a_lone_surrogate_is_refused_with_its_place(tokenizer):
    with pytest.raises(TokenizerError, match=r"text 0 .*U\+D800 at character 3"):
        tokenizer.encode("abc\ud800")
    with pytest.raises(TokenizerError, match=r"text 1 .*U\+DFFF at character 0"):
        tokenizer.encode_batch(["fine", "\udfff"])
    with pytest.raises(TokenizerError, match=r"text 1 .*U\+D800 at character 40000"):
        tokenizer.encode_batch(["▁ ▁", "a line\n▁" * 5000 + "\ud800"])


def test_every_id_has_a_text_for_display(tokenizer):
    assert all(isinstance(tokenizer.token_text(i), str) for i in range(tokenizer.vocab_size))


def test_it_meets_the_protocol_and_survives_pickling(tokenizer):
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.exact and tokenizer.unk_id is None
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.hash == tokenizer.hash
    assert [copy.encode(text) for text in TRICKY] == [tokenizer.encode(text) for text in TRICKY]
