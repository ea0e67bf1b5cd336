"""`maxlm plan --search` from the command line, where arithmetic is the result."""

from __future__ import annotations

import json

import pytest

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


GPUS = ["models/gpt2-124m", "hardware/h100", "data.batch_size=64", "train.duration=1000 steps"]


def test_without_a_compiler_nothing_is_called_compiled(tmp_path, capsys):
    path = tmp_path / "best.yaml"
    tpus = ["models/gpt2-124m", "hardware/v5e", "data.batch_size=64", "train.duration=1000 steps"]
    for given in ([*GPUS, "--topology", "h100x2"], [*tpus, "--topology", "v5e-4", "--no-compile"]):
        assert main(["plan", *given, "--search", "--output", str(path)]) == 0
        told = capsys.readouterr()
        assert "by arithmetic alone, nothing was compiled" in told.out
        assert "compiled s" not in told.out and "compiled ÷" not in told.out
        assert "nothing was compiled" in path.read_text()
        assert "Compiled ÷" not in path.read_text()


def test_the_best_layout_is_reported_where_asked(tmp_path, capsys):
    page, output = tmp_path / "best.html", str(tmp_path / "best.yaml")
    given = [*GPUS, "--topology", "h100x2", "--search", "--output", output]
    assert main(["plan", *given, "--json", "-", "--html", str(page), "--explain"]) == 0
    told = capsys.readouterr()
    plan = json.loads(told.out)  # the table of layouts goes to standard error then
    assert plan["memory"]["fits"]
    assert "→" in told.err
    assert "gpt2" in page.read_text()


@pytest.mark.parametrize("name", ["file/best.yaml", "mine.yaml"])
def test_a_search_begins_only_where_its_result_has_a_place(name, tmp_path, capsys):
    path = tmp_path / name
    (tmp_path / "file").write_text("no folder")
    if name == "mine.yaml":
        path.write_text("train:\n  steps: 5\n")
    given = [*GPUS, "--topology", "h100x2", "--search", "--output", str(path)]
    assert main(["plan", *given]) == 2
    told = capsys.readouterr()
    assert "ranking" not in told.err
    assert "give another --output" in told.err or "nothing can be written there" in told.err
    assert name != "mine.yaml" or path.read_text() == "train:\n  steps: 5\n"


def test_a_search_may_replace_what_a_search_wrote(tmp_path):
    given = [*GPUS, "--topology", "h100x2", "--search", "--output", str(tmp_path / "best.yaml")]
    assert [main(["plan", *given]) for _ in range(2)] == [0, 0]
