"""What `maxlm generate` prints of the tokens that are drawn."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from maxlm.cli.main import main
from maxlm.config.schema import DataConfig, RunConfig
from maxlm.data.tokenizers import load_tokenizer

BYTES = load_tokenizer("byte")
END = BYTES.eos_id


@pytest.fixture
def draws(monkeypatch):
    """Let the model draw these tokens, one row a prompt; returns what it was asked."""
    asked = {"taken": 0}

    class Scripted:
        def __init__(self, model, *, context_length, **options):
            asked["context"] = context_length

        def stream(self, params, prompts, **options):
            asked.update(options, prompts=prompts)
            for column in np.array(asked["rows"], np.int32).T:
                asked["taken"] += 1
                yield column

    config = RunConfig(data=DataConfig(length=64))
    trained = SimpleNamespace(config=config, model=None, params=None, tokenizer=BYTES, step=3)
    monkeypatch.setattr("maxlm.train.loading.load", lambda *_, **__: trained)
    monkeypatch.setattr("maxlm.generate.generator.Generator", Scripted)

    def script(*rows):
        asked["rows"] = rows
        return asked

    return script


def row(text, *, then=(), length=12):
    """Tokens of a text, the end of the document, and others up to a length."""
    tokens = [*BYTES.encode(text), *then]
    return tokens + [ord("x")] * (length - len(tokens))


def test_the_text_ends_where_the_document_does(draws, capsys):
    asked = draws(row("morrow.", then=[END]))
    assert main(["generate", "run", "--prompt", "Good "]) == 0
    assert capsys.readouterr().out == "Good morrow.\n"
    assert asked["taken"] == len("morrow.") + 1  # nothing is drawn after the end
    assert asked["prompts"] == [[BYTES.bos_id, *BYTES.encode("Good ")]]
    assert asked["context"] == 64


def test_each_of_several_texts_ends_at_its_own_end(draws, capsys):
    draws(row("one", then=[END]), row("twelve chars"), row("", then=[END, *b"abc", END]))
    assert main(["generate", "run", "--prompt", "1 ", "--prompt", "2 ", "--prompt", "3 "]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("—")]
    assert lines == ["1 one", "2 twelve chars", "3 "]


def test_characters_of_several_tokens_are_whole_and_broken_ones_visible(draws, capsys):
    draws([*"é—x".encode(), 0xC3, END])
    assert main(["generate", "run", "--prompt", "ö"]) == 0
    assert capsys.readouterr().out == "öé—x\ufffd\n"


def test_the_options_reach_the_model(draws):
    asked = draws(row("so"))
    options = {"--max-tokens": 7, "--temperature": 0.3, "--top-k": 5, "--top-p": 0.9, "--seed": 4}
    flags = [str(part) for pair in options.items() for part in pair]
    assert main(["generate", "run", "--prompt", "a", *flags]) == 0
    assert (asked["max_tokens"], asked["seed"]) == (7, 4)
    chosen = asked["options"]
    assert (chosen.temperature, chosen.top_k, chosen.top_p) == (0.3, 5, 0.9)


def test_options_that_draw_nothing_are_refused_before_the_model_is_loaded(monkeypatch, capsys):
    def never(*_, **__):
        raise AssertionError("loaded")

    monkeypatch.setattr("maxlm.train.loading.load", never)
    assert main(["generate", "run", "--prompt", "a", "--top-k", "0"]) == 2
    assert "top_k is 0" in capsys.readouterr().err
