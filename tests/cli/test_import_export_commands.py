"""`maxlm import` and `maxlm export`: what they print, and mistakes that end with a message."""

import json

from tests.interop.tiny import tokenizer_of_words, write_folder
from tests.small_run import call


def test_there_and_back_by_the_command_line(tmp_path, capsys):
    theirs, run, out = tmp_path / "theirs", tmp_path / "run", tmp_path / "out"
    write_folder("gpt2", theirs)
    (tmp_path / "tokenizer.json").write_text(tokenizer_of_words())
    tokenizer = ["--tokenizer", str(tmp_path / "tokenizer.json")]
    assert call("import", "hf", str(theirs), "--output", str(run), *tokenizer) == 0
    assert "gpt2, " in capsys.readouterr().out
    assert call("export", "hf", str(run), "--output", str(out), "--dtype", "bfloat16") == 0
    assert "model.safetensors" in capsys.readouterr().out
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert call("export", "hf", str(run), "--output", str(tmp_path / "x"), "--family", "llama") == 2
    message = capsys.readouterr().err
    assert "LlamaForCausalLM cannot say what this model is" in message
    assert "model.positions: learned (it would be rope)" in message


def test_mistakes_end_with_a_message(tmp_path, capsys):
    output = ["--output", str(tmp_path / "run")]
    assert call("import", "hf", str(tmp_path), *output) == 2
    assert "config.json: there is no such file" in capsys.readouterr().err
    assert call("import", "llama2c", str(tmp_path / "a.bin"), *output) == 2
    assert "name its SentencePiece model" in capsys.readouterr().err
    assert call("export", "hf", str(tmp_path / "none"), "--output", str(tmp_path / "out")) == 2
    assert "there is no such run" in capsys.readouterr().err
