from maxlm.cli.train import pretrain
from maxlm.config.load import load_config
from maxlm.generate.generator import Generator
from tests.small_run import call, devices, write_quick_config, write_text_store


def test_after_a_longer_last_phase_the_context_is_its_length(tmp_path, monkeypatch, capsys):
    """In samples of the run and in `maxlm generate`."""
    lengths = []
    begin = Generator.__init__

    def noted(self, model, *, context_length):
        lengths.append(context_length)
        begin(self, model, context_length=context_length)

    monkeypatch.setattr(Generator, "__init__", noted)
    store = write_text_store(tmp_path / "store", 20_000)
    phases = [{"duration": "1 steps"}, {"duration": "1 steps", "length": 64}]
    config = write_quick_config(
        tmp_path / "a",
        store,
        data={"phases": phases},
        train={"duration": None},
        eval={"prompts": ["A"], "sample_tokens": 2, "sets": {}},
    )
    loaded = load_config(str(config))
    with devices(1):
        pretrain(loaded, live=False)
    told = capsys.readouterr().out.splitlines()
    assert any(line.startswith("report: ") for line in told)
    assert told[-1].startswith("maxlm-result ")
    run = f"{loaded.output}/{loaded.name}"
    assert call("generate", run, "--prompt", "A", "--max-tokens", "2") == 0
    assert lengths == [64, 64]
