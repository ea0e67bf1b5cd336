"""`maxlm plan --search` from the command line, where arithmetic is the result."""

from __future__ import annotations

from maxlm.cli.main import main
from maxlm.config.load import load_config


def test_a_search_prints_its_table_and_writes_a_config_that_loads(tmp_path, capsys):
    path = str(tmp_path / "best.yaml")
    given = ["models/gpt2-124m", "hardware/h100", "data.batch_size=64", "train.duration=1000 steps"]
    code = main(["plan", *given, "--topology", "h100x2", "--search", "--output", path])
    out = capsys.readouterr().out
    assert code == 0
    assert "→" in out
    assert f"wrote {path}" in out
    best = load_config(path)
    assert best.data.batch_size == 64
    assert best.parallel.replica * best.parallel.fsdp * best.parallel.tensor == 2


def test_a_run_that_cannot_fit_says_how_much_it_takes(tmp_path, capsys):
    given = ["models/llama3-70b", "hardware/h100", "data.batch_size=8", "train.duration=1000 steps"]
    path = str(tmp_path / "best.yaml")
    code = main(["plan", *given, "--topology", "h100x8", "--search", "--output", path])
    assert code == 2
    assert "needs about" in capsys.readouterr().err
