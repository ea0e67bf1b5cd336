"""Small tokenizers of every kind, made on the spot, for tests of what holds for all of them."""

import functools
import json
from pathlib import Path

from maxlm.data.tokenizers import load_tokenizer, train_sentencepiece
from maxlm.data.tokenizers.huggingface import HuggingFaceTokenizer
from maxlm.data.tokenizers.huggingface_spec import _BYTE_OF

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"

CORPUS = [
    "The quick brown fox jumps over the lazy dog.\n\nThe dog, quick as it was, slept.\t42 foxes\r\n",
    "Die Würde des Menschen ist unantastbar. Sie zu achten ist Verpflichtung. 1234567890\n",
    "  indented   text\n    and more of it, with the words the fox and the dog had  \n",
    "literally <s> and </s> and <unk> and <0x41> and ▁ and ▅ and \x00 and \ufffd\n",
    "人人生而自由 在尊严和权利上一律平等 他们赋有理性和良心\n",
] * 3

_STEMS = [
    "fox",
    "dog",
    "jump",
    "quick",
    "brown",
    "lazy",
    "sleep",
    "sun",
    "moon",
    "water",
    "stone",
    "green",
    "light",
    "house",
    "river",
]
_ENDS = ["", "s", "ed", "ing", "ly", "er", "ness", "ful"]
CORPUS += [f"the {stem}{end} and the {end}{stem} of {stem}\n" for stem in _STEMS for end in _ENDS]


@functools.cache
def trained(kind: str):
    """A SentencePiece tokenizer of `CORPUS`."""
    return train_sentencepiece(CORPUS, vocab_size=400, kind=kind)


def gpt2_files() -> dict[str, bytes]:
    """Vocabulary and merges of a GPT-2-like tokenizer with a handful of merges."""
    letters = sorted(_BYTE_OF, key=_BYTE_OF.get)
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("Ã", "¼"), ("o", "x")]
    tokens = [*letters, *("".join(pair) for pair in merges), "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    text = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges)
    return {
        "vocab.json": json.dumps(vocabulary).encode(),
        "merges.txt": text.encode("utf-8"),
    }


def byte_level_json(normalizer: dict | None = None) -> bytes:
    """A byte-level `tokenizer.json` with the same vocabulary and an added run of spaces."""
    built = json.loads(HuggingFaceTokenizer("gpt2", gpt2_files())._pipeline.to_str())
    spaces = {**built["added_tokens"][0], "content": "    ", "special": False, "normalized": True}
    built["added_tokens"].append({**spaces, "id": len(built["model"]["vocab"])})
    built["normalizer"] = normalizer
    return json.dumps(built).encode()


@functools.cache
def exact_tokenizer(name: str):
    """One of `EXACT` by name."""
    if name == "byte":
        return load_tokenizer("byte")
    if name == "gpt2":
        return HuggingFaceTokenizer("gpt2", gpt2_files())
    if name == "hf":
        return HuggingFaceTokenizer("hf", {"tokenizer.json": byte_level_json()})
    return trained(name)


EXACT = ("byte", "bpe", "unigram", "gpt2", "hf")
