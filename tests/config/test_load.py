"""Configs merge as said, and every mistake is named with file, line and key."""

import pytest

from maxlm import storage
from maxlm.config.load import load_config, load_with_origins
from maxlm.config.schema import AttentionSpan, Duration
from maxlm.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    def write_file(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write_file


def errors_of(*arguments):
    with pytest.raises(ConfigError) as caught:
        load_config(*arguments)
    return str(caught.value)


def test_the_file_wins_over_what_it_extends_and_the_later_of_those_over_the_earlier(write):
    write("a.yaml", "model: {num_layers: 1, embed_dim: 24, num_heads: 1}\nname: a\n")
    write("b.yaml", "model: {num_layers: 2, embed_dim: 48}\n")
    path = write("c.yaml", "extends: [a, b.yaml]\nmodel: {num_layers: 3}\n")
    config = load_config(path)
    assert (config.model.num_layers, config.model.embed_dim, config.model.num_heads) == (3, 48, 1)
    assert config.name == "a"


def test_several_sources_merge_and_overrides_win_over_all(write):
    a = write("a.yaml", "name: a\ndata: {length: 8}\n")
    b = write("b.yaml", "name: b\n")
    config = load_config([a, b], ["data.length=16", "train.duration=2k tokens"])
    assert (config.name, config.data.length) == ("b", 16)
    assert config.train.duration == Duration(amount=2000, unit="tokens")


def test_extends_is_found_beside_the_file_and_among_the_presets(write):
    write("sub/base.yaml", "extends: models/nano-4x128\nname: base\n")
    config = load_config(write("top.yaml", "extends: sub/base\n"))
    assert (config.name, config.model.embed_dim) == ("base", 128)


def test_lists_are_replaced_whole_and_overridden_by_index(write):
    base = write("a.yaml", "eval: {prompts: [one, two]}\ndata: {phases: [{length: 8}]}\n")
    path = write("b.yaml", "extends: a\neval: {prompts: [three]}\n")
    assert load_config(path).eval.prompts == ["three"]
    config = load_config(base, ["eval.prompts.1=ROMEO:", "data.phases.0.length=512"])
    assert config.eval.prompts == ["one", "ROMEO:"]
    assert config.data.phases[0].length == 512
    appended = load_config(base, ["data.phases.0.duration=5", "data.phases.1.length=4"])
    assert [phase.length for phase in appended.data.phases] == [8, 4]


def test_null_resets_to_the_default_and_takes_named_entries_out(write):
    path = write(
        "a.yaml",
        "model: {num_layers: 3, head_dim: 8}\noptimizer: {clip_norm: 2}\n"
        "data: {mixture: {a: {store: x}, b: {store: y}}}\n",
    )
    config = load_config(
        path,
        ["model.num_layers=null", "model.head_dim=null", "optimizer.clip_norm=null",
         "data.mixture.a=null"],
    )  # fmt: skip
    assert config.model.num_layers == 12
    assert config.model.head_dim is None
    assert config.optimizer.clip_norm is None
    assert list(config.data.mixture) == ["b"]


def test_numbers_and_words_are_read_as_yaml_1_2_reads_them(write):
    path = write(
        "a.yaml",
        "optimizer: {learning_rate: 3e-4}\nname: no\n"
        "eval: {sets: {on: {store: off, max_tokens: 1e6}}}\ntrain: {duration: 1_000}\n",
    )
    config = load_config(path)
    assert config.optimizer.learning_rate == 3e-4
    assert config.name == "no"
    assert config.eval.sets["on"].store == "off"
    assert config.eval.sets["on"].max_tokens == 1_000_000
    assert config.train.duration.amount == 1000


def test_text_options_need_no_quotes_on_the_command_line():
    assert load_config([], ["name=2024"]).name == "2024"
    assert load_config([], ["eval.prompts=[a, 'b: c']"]).eval.prompts == ["a", "b: c"]
    pattern = load_config(
        [], ["model.attention_pattern=[local, global]", "model.attention_window=4"]
    )
    assert pattern.model.attention_pattern == [AttentionSpan.LOCAL, AttentionSpan.GLOBAL]


def test_origins_say_which_line_or_override_set_a_value(write):
    write("base.yaml", "model:\n  num_layers: 2\n  num_heads: 2\n")
    path = write("a.yaml", "extends: base\nmodel:\n  num_layers: 3\n")
    origins = load_with_origins(path, ["name=x"]).origins
    assert origins["model.num_layers"].endswith("a.yaml:3")
    assert origins["model.num_heads"].endswith("base.yaml:3")
    assert origins["name"] == "command line: name=x"


MISTAKES = [
    ("optimzer: {}", "a.yaml:1: optimzer: unknown option (did you mean 'optimizer'?)"),
    ("model:\n  num_head: 3", "a.yaml:2: model.num_head: unknown option (did you mean 'num_heads'?)"),
    ("learning_rate: 1", "(did you mean 'optimizer.learning_rate'?)"),
    ("model:\n  mlp: gate", "a.yaml:2: model.mlp: the text 'gate' does not fit; allowed: gated, gated_shifted, plain (did you mean 'gated'?)"),
    ("model: {embed_dim: '12'}", "allowed: whole number ≥ 1; remove the quotes"),
    ("name: 12", "name: 12 does not fit; allowed: text; put it in quotes"),
    ("model: {num_layers: 0}", "model.num_layers: 0 does not fit; allowed: whole number ≥ 1"),
    ("model: {num_layers: 1.5}", "model.num_layers: 1.5 does not fit"),
    ("model: {qk_norm: 1}", "model.qk_norm: 1 does not fit; allowed: true or false"),
    ("model: {norm_epsilon: true}", "'true' does not fit; allowed: number > 0"),
    ("optimizer: {learning_rate: .inf}", "the text '.inf' does not fit; allowed: number > 0"),
    ("optimizer: {learning_rate: 1e999}", "'1e999' is no number that can be used"),
    ("optimizer: {beta1: 1}", "allowed: number ≥ 0 and < 1"),
    ("train: 3", "train: 3 does not fit; allowed: a section with the keys duration"),
    ("data: {mixture: [a]}", "data.mixture: a list of 1 does not fit; allowed: mapping of names to"),
    ("data: {mixture: {books: {}}}", "data.mixture.books.store: is required and not set"),
    ("data: {phases: [3]}", "data.phases.0: 3 does not fit"),
    ("train: {duration: 5 parsecs}", "train.duration: the text '5 parsecs': a duration is a number and a unit"),
    ("train: {duration: -5}", "train.duration: -5: a duration is"),
    ("train: {duration: true}", "train.duration: 'true': a duration is"),
    ("name: a b", "may have only letters, digits"),
    ("name: ../x", "may have only letters, digits"),
    ("- 1", "a.yaml:1: a config is a mapping of sections"),
    ("just words", "a.yaml:1: a config is a mapping of sections"),
    ("a: [\nb", "a.yaml:2: not YAML: while parsing a flow sequence"),
    ("a:\n\t- b", "a.yaml:2: not YAML"),
    ("name: a\n---\nname: b", "not YAML: expected a single document"),
    ("model:\n  num_heads: 1\n  num_heads: 2", "a.yaml:3: 'num_heads' is set twice (first on line 2)"),
    ("? [a]\n: b", "a key must be a word"),
    ("name: !!python/name:os.system x", "the tag"),
    ("model: &m\n  x: *m", "an alias (*name) that unfolds without end"),
    ("model:\n  <<: {num_layers: 3}", "'<<' is not read here; inherit with 'extends:'"),
    (b"name: caf\xe9", "a.yaml:1: not UTF-8 text: byte 0xe9"),
    (b"name: a\nx: \x01", "a.yaml:2: not YAML: it has the control character U+0001"),
    ("extends: 3", "a.yaml:1: extends: expected the name of a config"),
    ("extends: models/gpt2-124", "a.yaml:1: extends: no config 'models/gpt2-124' (did you mean 'models/gpt2-124m'?)"),
    ("extends: a", "a.yaml:1: extends itself"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"), MISTAKES, ids=[str(text)[:30] for text, _ in MISTAKES]
)
def test_a_mistake_is_named_with_its_place_and_what_is_allowed(write, text, expected):
    assert expected in errors_of(write("a.yaml", text))


def test_the_error_points_at_the_file_that_set_the_value(write):
    write("base.yaml", "# a comment\nmodel:\n  num_layers: none\n")
    message = errors_of(write("a.yaml", "extends: base\nmodel: {num_heads: 2}\n"))
    assert "base.yaml:3: model.num_layers" in message


def test_all_mistakes_are_reported_together_in_the_order_of_lines(write):
    path = write("a.yaml", "nme: x\nmodel: {num_layers: a}\ntrain:\n  seed: -1\n")
    lines = errors_of(path, ["modle=3", "data.length=1"]).splitlines()
    assert lines[0] == "5 mistakes in the config:"
    expected = ["a.yaml:1", "a.yaml:2", "a.yaml:4", "data.length=1", "modle=3"]
    assert all(part in line for part, line in zip(expected, lines[1:], strict=True))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("foo", "command line: foo: an override is KEY=VALUE"),
        ("=3", "command line: =3: an override is KEY=VALUE"),
        ("model..x=3", "an override is KEY=VALUE"),
        ("data.phases.1.length=5", "'1' is no index of data.phases, which has 0 items"),
        ("eval.prompts.-1=5", "'-1' is no index of eval.prompts"),
        ("optimizer.beta1=[1,", "command line: optimizer.beta1=[1,: not YAML"),
        ("model.num_layers.x=3", "model.num_layers: a mapping with the keys x does not fit"),
        ("model={embed_dims: 5}", "command line: model={embed_dims: 5}: model.embed_dims: unknown"),
        ("optimizer.kind=adam", "allowed: adamw, muon (did you mean 'adamw'?)"),
    ],
)
def test_a_bad_override_names_itself(override, expected):
    assert expected in errors_of([], [override])


def test_a_cycle_over_several_files_is_refused(write):
    write("a.yaml", "extends: b\n")
    path = write("b.yaml", "extends: a\n")
    message = errors_of(path)
    assert "a.yaml:1: extends itself" in message
    assert message.count("→") == 2


def test_a_missing_config_names_the_nearest_preset():
    assert "did you mean 'runs/quickstart'?" in errors_of("quickstart")
    assert "did you mean 'models/llama3-8b'?" in errors_of("lama3-8b")


def test_a_folder_of_the_same_name_does_not_hide_a_preset(tmp_path, monkeypatch):
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert load_config("runs/quickstart").name == "quickstart"


def test_a_config_on_an_object_store_extends_what_lies_beside_it_and_presets():
    storage.write_text("memory://team/base.yaml", "extends: models/nano-4x128\nname: base\n")
    storage.write_text("memory://team/top.yaml", "extends: base\ndata: {length: 32}\n")
    config = load_config("memory://team/top.yaml")
    assert (config.name, config.data.length, config.model.embed_dim) == ("base", 32, 128)
    storage.write_text("memory://team/bad.yaml", "nme: x\n")
    assert "memory://team/bad.yaml:1: nme: unknown" in errors_of("memory://team/bad.yaml")
