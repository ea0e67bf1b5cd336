"""The command `maxlm` itself: exit codes and messages that every command shares."""

import pytest

from maxlm.cli import config as config_command
from maxlm.cli.main import main


def test_only_what_is_missing_is_asked_for(capsys):
    for command, missing in (("train", "config"), ("eval", "RUN[@STEP]")):
        with pytest.raises(SystemExit) as ended:
            main([command])
        assert ended.value.code == 2
        assert capsys.readouterr().err.rstrip().endswith(f"are required: {missing}")


def test_a_wrong_command_names_the_nearest_and_exits_2(capsys):
    assert main(["trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


def test_ctrl_c_exits_130_without_a_traceback(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(config_command, "run", interrupted)
    assert main(["config", "list"]) == 130
    assert capsys.readouterr().err == "maxlm config: interrupted\n"
