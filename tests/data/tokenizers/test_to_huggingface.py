"""Our tokenizers as files that transformers reads: the same ids, the same specials."""

import json

import pytest

from maxlm.data.tokenizers import load_tokenizer, train_sentencepiece
from maxlm.data.tokenizers import to_huggingface as module
from maxlm.data.tokenizers.to_huggingface import huggingface_files
from maxlm.errors import TokenizerError
from tests.data.tokenizers.tiny_tokenizers import CORPUS

TEXTS = [
    "The quick brown fox",
    "  indented\n\n text\t42",
    "Würde 東京 🦊",
    "",
    "a",
    " the foxes\r\n",
]


def _trained(kind):
    return train_sentencepiece(CORPUS, vocab_size=400, kind=kind)


@pytest.mark.parametrize("kind", ["byte", "bpe", "unigram"])
def test_ids_and_texts_are_ours(tmp_path, kind):
    transformers = pytest.importorskip("transformers", reason="it comes with maxlm[test]")
    ours = load_tokenizer("byte") if kind == "byte" else _trained(kind)
    for name, content in huggingface_files(ours, add_bos=True, max_length=64).items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids == ours.encode(text)
        assert theirs.decode(ids) == text
    assert theirs("fox")["input_ids"] == [ours.bos_id, *ours.encode("fox")]
    assert (theirs.eos_token_id, theirs.model_max_length) == (ours.eos_id, 64)
    assert load_tokenizer(tmp_path).encode(TEXTS[1]) == ours.encode(TEXTS[1])


def test_without_bos_a_prompt_is_its_text_alone():
    files = huggingface_files(load_tokenizer("byte"), add_bos=False, max_length=None)
    assert json.loads(files["tokenizer.json"])["post_processor"] is None
    assert "model_max_length" not in json.loads(files["tokenizer_config.json"])


def test_a_conversion_that_gives_other_ids_is_refused(monkeypatch):
    byte = load_tokenizer("byte")
    other = module._pipeline(_trained("bpe"))
    monkeypatch.setattr(module, "_pipeline", lambda tokenizer: other)
    with pytest.raises(TokenizerError, match=r"has no equal tokenizer.json: 'Once upon"):
        huggingface_files(byte, add_bos=False, max_length=None)
