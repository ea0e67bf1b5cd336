"""GPT-2's BPE against a plain one written down from its definition, and against known ids."""

import itertools
import json
import re

import pytest
from tiny_tokenizers import SHARED, exact_tokenizer, gpt2_files

from maxlm.data.tokenizers import load_tokenizer
from maxlm.data.tokenizers.huggingface_spec import _BYTE_OF

# GPT-2's pattern for ASCII text, where letters and digits are these.
WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+")
ASCII = (
    "".join(map(chr, range(128))) + " I'll've  the  foxes'\n\n\n  in 1999, they'd  run.  \n\tthe "
)


def plain_bpe(text: str, vocabulary: dict[str, int], ranks: dict[tuple[str, str], int]):
    """Split into words, then merge the pair of lowest rank until there is none."""
    letter = {byte: char for char, byte in _BYTE_OF.items()}
    ids = []
    for word in WORDS.findall(text):
        parts = [letter[byte] for byte in word.encode()]
        while len(parts) > 1:
            rank, place = min(
                (ranks.get(pair, len(ranks)), place)
                for place, pair in enumerate(itertools.pairwise(parts))
            )
            if rank == len(ranks):
                break
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        ids += [vocabulary[part] for part in parts]
    return ids


def tables(vocabulary: bytes, merges: bytes):
    lines = merges.decode().split("\n")[1:]
    pairs = [tuple(line.split(" ")) for line in lines if line]
    return json.loads(vocabulary), {pair: rank for rank, pair in enumerate(pairs)}


def test_a_small_vocabulary_gives_the_ids_of_plain_bpe():
    expected = plain_bpe(ASCII, *tables(*gpt2_files().values()))
    assert exact_tokenizer("gpt2").encode(ASCII) == expected


@pytest.mark.skipif(not SHARED.exists(), reason="GPT-2's files are not on this machine")
def test_gpt2_gives_the_ids_of_plain_bpe_and_the_known_ones():
    folder = SHARED / "asset-gpt2-bpe"
    gpt2 = load_tokenizer(folder)
    assert gpt2.encode("Hello, I'm a language model,") == [
        15496,
        11,
        314,
        1101,
        257,
        3303,
        2746,
        11,
    ]
    assert gpt2.token_text(50256) == "<|endoftext|>"
    files = [(folder / name).read_bytes() for name in ("encoder.json", "vocab.bpe")]
    text = ASCII
    play = SHARED / "pretrain-tinyshakespeare"
    for path in sorted(play.glob("*.txt"))[:1]:
        text += path.read_text(encoding="utf-8")[:20_000]
    assert gpt2.encode(text) == plain_bpe(text, *tables(*files))
