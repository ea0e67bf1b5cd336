"""What `maxlm generate` prints, writes and refuses, of a real tiny model of bytes."""

from __future__ import annotations

import json

import pytest

import maxlm
from maxlm.cli.main import main
from maxlm.data.tokenizers import load_tokenizer
from tests.generate.chat_model import write_chat_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    write_chat_model(folder)
    return str(folder)


@pytest.fixture(scope="module")
def greedy(folder):
    """Likeliest text after a prompt, from Python."""
    model = maxlm.load(folder)
    return lambda prompt, count: model.generate(prompt, max_tokens=count, temperature=0).text


def generate(folder, *arguments):
    return main(["generate", folder, *arguments])


COLD = ["--temperature", "0", "--max-tokens", "6"]


@pytest.mark.slow
def test_one_prompt_is_printed_with_its_text_and_the_speed_told_beside(folder, greedy, capfd):
    assert generate(folder, "--prompt", "The cat", *COLD) == 0
    out, err = capfd.readouterr()
    assert out == f"The cat{greedy('The cat', 6)}\n"
    assert "first token after" in err and "then 5 tokens in " in err and "tokens/s" in err


@pytest.mark.slow
def test_several_prompts_each_after_the_other(folder, greedy, capfd):
    assert generate(folder, "--prompt", "The cat", "--prompt", "A", *COLD) == 0
    texts = capfd.readouterr().out.split("\n————————\n")
    assert texts == [f"The cat{greedy('The cat', 6)}", f"A{greedy('A', 6)}", ""]


@pytest.mark.slow
def test_a_stop_string_a_bias_and_logprobs_reach_the_model(folder, greedy, capfd):
    text = greedy("The cat", 6)
    options = ["--stop", text[2:4], "--logprobs", "2", *COLD]
    assert generate(folder, "--prompt", "The cat", *options) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == f"The cat{text[: text.index(text[2:4])]}"
    assert all(float(line.split()[0]) <= 0 for line in lines[1:]) and len(lines) > 1
    (letter,) = load_tokenizer(folder).encode("z")
    assert generate(folder, "--prompt", "a", "--logit-bias", f"{letter}=100", *COLD) == 0
    assert capfd.readouterr().out == "azzzzzz\n"


@pytest.mark.slow
def test_beams_are_listed_with_their_scores(folder, capfd):
    assert generate(folder, "--prompt", "The cat", "--beams", "3", "--max-tokens", "4") == 0
    scores = [float(line.split()[0]) for line in capfd.readouterr().out.splitlines()]
    assert len(scores) >= 3 and scores == sorted(scores, reverse=True)


@pytest.mark.slow
def test_a_file_is_searched_with_its_stop_strings(folder, tmp_path, capfd):
    model = maxlm.load(folder)
    plain = model.beams("The cat", max_tokens=6, beams=3)
    stop = plain[0].text[2:4]
    asked, answered = tmp_path / "asked.jsonl", tmp_path / "answered.jsonl"
    records = [{"prompt": "The cat"}, {"prompt": "A", "max_tokens": 2}] * 3
    records += [{"prompt": "The cat", "stop": [stop]}]
    asked.write_text("\n".join(map(json.dumps, records)))
    files = ["--input", str(asked), "--output", str(answered), "--max-tokens", "6"]
    assert generate(folder, *files, "--beams", "3", "--rows", "6") == 0
    told = [json.loads(line) for line in answered.read_text().splitlines()]
    assert [t["prompt"] for t in told] == [r["prompt"] for r in records]
    for one in told[:6:2]:
        assert one["text"] == plain[0].text and one["num_tokens"] == 6
        assert [h["text"] for h in one["hypotheses"]] == [h.text for h in plain]
    assert [one["num_tokens"] for one in told[1:6:2]] == [2, 2, 2]
    assert stop not in told[-1]["text"] and told[-1]["num_tokens"] <= 6
    stopped = model.beams("The cat", max_tokens=6, beams=3, stop=[stop])
    assert [h.text for h in stopped] == [h["text"] for h in told[-1]["hypotheses"]]
    assert "7 answers" in capfd.readouterr().err
    asked.write_text(json.dumps({"prompt": "A", "seed": 3}))
    files[3] = str(tmp_path / "other.jsonl")
    assert generate(folder, *files, "--beams", "3") == 2
    assert "beam search draws nothing: leave out 'seed'" in capfd.readouterr().err


@pytest.mark.slow
def test_a_file_is_answered_line_by_line_in_its_order(folder, greedy, tmp_path, capfd):
    records = [
        {"prompt": "The cat", "max_tokens": 3},
        {"prompt": "A"},
        {"messages": [{"role": "user", "content": "hi"}], "logprobs": 1},
        {"prompt": "The cat", "temperature": 1.5, "seed": 4, "stop": ["zzzz"]},
    ]
    asked, answered = tmp_path / "asked.jsonl", tmp_path / "answered.jsonl"
    asked.write_text("\n".join(map(json.dumps, records)) + "\n\n")
    files = ["--input", str(asked), "--output", str(answered)]
    assert generate(folder, *files, "--rows", "2", *COLD) == 0
    told = [json.loads(line) for line in answered.read_text().splitlines()]
    assert [t.get("prompt") for t in told] == ["The cat", "A", None, "The cat"]
    assert told[0]["text"] == greedy("The cat", 3) and told[0]["num_tokens"] == 3
    assert told[1]["text"] == greedy("A", 6) and told[1]["finish_reason"] == "length"
    assert len(told[2]["logprobs"]) == len(told[2]["tokens"]) == len(told[2]["alternatives"]) == 6
    assert "4 answers" in capfd.readouterr().err
    assert generate(folder, *files) == 2
    assert "there is such a file already" in capfd.readouterr().err


@pytest.mark.slow
def test_a_chat_goes_on_until_the_input_ends(folder, monkeypatch, capsys):
    said = iter(["hello", "", "again"])

    def read(prompt):
        try:
            return next(said)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    assert generate(folder, "--chat", *COLD) == 0
    out, err = capsys.readouterr()
    assert err.count("tokens/s") == 2 and "anew" in err and len(out) > 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "choose one of --prompt, --input and --chat"),
        (["--prompt", "a", "--chat"], "--prompt and --chat given: choose one"),
        (["--prompt", "a", "--top-k", "0"], "top_k is 0"),
        (["--prompt", "a", "--stop", ""], "stop string 1 is empty"),
        (["--prompt", "a", "--stop", "\udcff"], "no valid UTF-8"),
        (["--prompt", "a", "--logit-bias", "x"], "--logit-bias x: write a token's id"),
        (["--prompt", "a", "--max-tokens", "0"], "--max-tokens 0"),
        (["--prompt", "a", "--output", "x"], "--input and --output belong together"),
        (["--chat", "--beams", "3"], "--beams and --chat given"),
        (["--prompt", "a", "--beams", "3", "--slide"], "--beams and --slide given"),
        (["--prompt", "a", "--beams", "3", "--logprobs", "1"], "--beams and --logprobs given"),
        (["--prompt", "a", "--rows", "0"], "--rows 0"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_model_is_loaded(
    monkeypatch, capsys, arguments, message
):
    def never(*_, **__):
        raise AssertionError("loaded")

    monkeypatch.setattr("maxlm.generate.language_model.load", never)
    assert main(["generate", "run", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", "line 2: not JSON"),
        ("[1]", "line 2: not an object"),
        ('{"promt": "a"}', "line 2: no key 'promt' (did you mean 'prompt'?)"),
        ("{}", "line 2: give either a prompt or messages"),
        ('{"prompt": "a", "top_p": 2}', "line 2: top_p is 2"),
        ('{"prompt": "a", "temperature": "hot"}', "line 2: a value is of the wrong kind"),
        ('{"prompt": ""}', "line 2: prompt 1 of 1 is empty"),
        ('{"prompt": "a", "stop": ""}', "line 2: stop string 1 is empty"),
        ('{"messages": []}', "line 2: the conversation has no messages"),
        (
            json.dumps({"prompt": "x" * 70}),
            "line 2: the prompt has 70 tokens, and this model sees 64",
        ),
    ],
)
def test_a_line_that_cannot_be_answered_is_named_and_nothing_written(
    folder, tmp_path, capsys, line, message
):
    asked, answered = tmp_path / "asked.jsonl", tmp_path / "answered.jsonl"
    asked.write_text(f'{{"prompt": "fine"}}\n{line}\n')
    assert generate(folder, "--input", str(asked), "--output", str(answered)) == 2
    assert message in capsys.readouterr().err
    assert not answered.exists()
