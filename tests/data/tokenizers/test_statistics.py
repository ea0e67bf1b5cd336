"""Measuring a tokenizer: counts by group against counts by hand."""

import zipfile

import pytest
from tiny_tokenizers import SHARED, byte_level_json, exact_tokenizer, trained

from maxlm.data.document import Problems
from maxlm.data.sources.finding import find_files
from maxlm.data.tokenizers import load_tokenizer, train_sentencepiece
from maxlm.data.tokenizers.corpus import read_texts
from maxlm.data.tokenizers.huggingface import HuggingFaceTokenizer
from maxlm.data.tokenizers.statistics import measure


def test_counts_of_bytes_are_those_of_the_text():
    found = measure(load_tokenizer("byte"), [("en", "ab"), ("zh", "人"), ("en", "a\n")])
    english, chinese = found.groups
    assert (english.group, english.texts, english.bytes, english.tokens) == ("en", 2, 4, 4)
    assert (english.ids_used, english.single_byte_tokens, english.unknowns) == (3, 0, 0)
    assert (chinese.characters, chinese.tokens, chinese.single_byte_tokens) == (1, 3, 3)
    assert (found.total.bytes, found.total.ids_used, found.total.bytes_per_token) == (7, 5, 1.0)
    assert found.to_json()["total"]["not_restored"] == 0


def test_many_texts_are_counted_once_each():
    texts = [("a" if number % 3 else "b", "the fox " * (number % 5)) for number in range(1000)]
    found = measure(trained("bpe"), texts)
    assert found.total.texts == 1000
    assert found.total.bytes == sum(len(text) for _, text in texts)
    assert found.total.tokens == sum(len(trained("bpe").encode(text)) for _, text in texts)


def test_texts_that_do_not_come_back_are_counted():
    nfc = HuggingFaceTokenizer("hf", {"tokenizer.json": byte_level_json({"type": "NFC"})})
    found = measure(nfc, [("x", "e\u0301"), ("x", "plain")])
    assert found.total.not_restored == 1


def test_no_text_gives_no_ratio():
    found = measure(exact_tokenizer("gpt2"), [])
    assert (found.groups, found.total.bytes_per_token) == ([], 0.0)


@pytest.mark.skipif(not SHARED.exists(), reason="the multilingual text is not on this machine")
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_tokenizer_of_english_alone_restores_hundreds_of_languages(kind):
    archive = SHARED / "pretrain-udhr-multilingual" / "udhr2.zip"
    with zipfile.ZipFile(archive) as opened:
        english = opened.read("udhr2/eng.txt").decode()
    tokenizer = train_sentencepiece([english], vocab_size=700, kind=kind)
    records = read_texts(find_files([str(archive)]), Problems())
    found = measure(tokenizer, ((record.group, record.text) for record in records))
    assert len(found.groups) > 380
    assert (found.total.not_restored, found.total.unknowns) == (0, 0)
    by_name = {group.group.rsplit("/")[-1]: group for group in found.groups}
    assert by_name["eng.txt"].bytes_per_token > 2.5 > by_name["cmn_hans.txt"].bytes_per_token
