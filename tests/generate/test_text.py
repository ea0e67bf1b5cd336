"""Pieces of text are whole characters, and nothing of a stop string is ever shown."""

import random

import pytest

from maxlm.data.tokenizers import load_tokenizer
from maxlm.errors import ConfigError
from maxlm.generate.text import TextStream, check_stop

BYTES = load_tokenizer("byte")


def pieces(text, stop=()):
    """What is shown after each byte, and at the end."""
    stream = TextStream(BYTES, stop)
    shown = []
    for token in text if isinstance(text, bytes) else text.encode():
        shown.append(stream.add(token))
        if stream.stopped:
            break
    return [*shown, stream.end()]


def test_a_character_is_shown_with_its_last_byte():
    assert pieces("aé—") == ["a", "", "é", "", "", "—", ""]


def test_broken_bytes_are_visible():
    assert "".join(pieces(b"a\xc3b\xff\xe2\x80")) == "a\ufffdb\ufffd\ufffd"


def test_what_may_begin_a_stop_string_is_held_back_until_it_is_known():
    assert pieces("ab\n\nc", ["\n\n"])[:4] == ["a", "b", "", ""]
    assert pieces("ab\nc", ["\n\n"]) == ["a", "b", "", "\nc", ""]
    assert pieces("ab\n", ["\n\n"]) == ["a", "b", "", "\n"]  # nothing follows


@pytest.mark.parametrize("seed", range(20))
def test_as_if_the_whole_text_were_searched_at_once(seed):
    rng = random.Random(seed)
    text = "".join(rng.choice("abé") for _ in range(40))
    stop = ["".join(rng.choice("abé") for _ in range(rng.randint(1, 4))) for _ in range(2)]
    ends = []  # the first to be complete ends the text; of several, the one that began first
    for size in range(1, len(text) + 1):
        found = [text[:size].find(s) for s in stop if s in text[:size]]
        if found:
            ends = [min(found)]
            break
    assert "".join(pieces(text, stop)) == (text[: ends[0]] if ends else text)


def test_stop_strings_that_no_text_holds_are_refused():
    check_stop(["\n", "é"])
    with pytest.raises(ConfigError, match=r"stop string 2 is empty"):
        check_stop(["a", ""])
    with pytest.raises(ConfigError, match=r"stop string 1, .* is no valid UTF-8 at character 1"):
        check_stop(["a\udcff"])
