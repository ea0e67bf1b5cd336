"""`maxlm config`: what a person sees."""

import json
import subprocess
import sys
import time

import pytest

from maxlm.cli.main import main
from maxlm.config.load import load_config
from tests.small_run import write_text_store


def test_show_prints_a_config_that_loads_again(tmp_path, capsys):
    assert main(["config", "show", "runs/quickstart", "train.seed=7"]) == 0
    path = tmp_path / "shown.yaml"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_config(str(path)) == load_config("runs/quickstart", ["train.seed=7"])


def test_show_merges_presets_and_derives(capsys):
    arguments = [
        "config",
        "show",
        "models/llama3-8b",
        "hardware/v5p",
        "--derived",
        "--devices",
        "64",
    ]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert "8,030,261,248 parameters" in shown.err
    assert "data.batch_size" in shown.out
    assert "Step Law, arXiv:2503.04715" in shown.out


def test_show_resolved_is_a_config_without_open_values(tmp_path, capsys):
    arguments = ["config", "show", "runs/books-10m", "--resolved", "--vocab-size", "4096"]
    assert main([*arguments, "--train-tokens", "20e6", "--platform", "cpu"]) == 0
    path = tmp_path / "resolved.yaml"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    config = load_config(str(path))
    assert config.data.batch_size == 16
    assert config.model.vocab_size == 4096


def test_show_origins_names_files_lines_and_overrides(capsys):
    assert main(["config", "show", "runs/quickstart", "name=x", "--origins"]) == 0
    out = capsys.readouterr().out
    assert "command line: name=x" in out
    assert "nano-4x128.yaml:" in out


def test_derived_values_need_a_vocabulary(capsys):
    assert main(["config", "show", "models/nano-4x128", "--derived"]) == 2
    assert "add --vocab-size N" in capsys.readouterr().err


def test_check_reports_all_mistakes_of_all_files_and_exits_2(tmp_path, capsys):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("name: good\n")
    bad.write_text("nme: x\nmodel:\n  num_layers: many\n")
    assert main(["config", "check", str(good), str(bad), "runs/quickstrt"]) == 2
    shown = capsys.readouterr()
    assert f"{good}: fine" in shown.out
    assert f"{bad}:1: nme: unknown option (did you mean 'name'?)" in shown.err
    assert f"{bad}:3: model.num_layers: the text 'many' does not fit" in shown.err
    assert "did you mean 'runs/quickstart'?" in shown.err
    assert main(["config", "check", str(good)]) == 0


def test_list_and_schema_and_options_print(capsys):
    assert main(["config", "list"]) == 0
    assert "runs/quickstart" in capsys.readouterr().out.splitlines()
    assert main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "maxlm config"
    assert main(["config", "options"]) == 0
    assert "| `model.num_layers` |" in capsys.readouterr().out


def test_a_mistake_prints_no_traceback(capsys):
    assert main(["config", "show", "runs/quickstart", "modle.x=1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("maxlm config: command line: modle.x=1")
    assert "Traceback" not in error


def test_no_config_to_show_is_said(capsys):
    assert main(["config", "show", "name=x"]) == 2
    assert "name a config to show" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["config", "--help"], ["config", "show", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    program = (
        "import sys\nfrom maxlm.cli.main import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "heavy = {'pydantic', 'yaml', 'jax', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout
    assert time.perf_counter() - start < 5  # a loaded machine; alone it takes 0.15 s


def test_loading_a_config_imports_no_jax():
    program = (
        "import sys\nfrom maxlm.cli.main import main\n"
        "main(['config', 'show', 'models/gpt2-124m', '--derived'])\n"
        "sys.exit('imported jax' if 'jax' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_derived_values_come_from_the_stores_that_the_config_names(tmp_path, capsys):
    store = write_text_store(tmp_path / "store")
    named = f"data.mixture.plays.store={store}"
    assert main(["config", "show", "models/nano-4x128", named, "--derived"]) == 0
    shown = capsys.readouterr()
    assert "vocab_size" in shown.out and "257" in shown.out
    assert "4 epochs of 54,002 tokens" in shown.out
    missing = "data.mixture.plays.store=nowhere"
    assert main(["config", "show", "models/nano-4x128", missing, "--derived"]) == 2
    assert "names no token store that exists" in capsys.readouterr().err
