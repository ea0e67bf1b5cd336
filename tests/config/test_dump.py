"""A written config loads again equal."""

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from maxlm.config.document import read_document
from maxlm.config.dump import dump, to_yaml
from maxlm.config.duration import Duration, DurationUnit
from maxlm.config.load import load_config
from maxlm.config.presets import preset_names
from maxlm.config.schema import RunConfig

# A failure is shown as it was found: shrinking one would take minutes.
PHASES = [Phase.explicit, Phase.generate]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,8}", fullmatch=True)
POSITIVE = st.floats(min_value=0, max_value=1e30, exclude_min=True)
DURATIONS = st.builds(
    lambda amount, unit: Duration(amount=amount, unit=unit),
    st.one_of(st.integers(1, 10**15), st.floats(1e-9, 1e15)),
    st.sampled_from(list(DurationUnit)),
)
CONFIGS = st.fixed_dictionaries(
    {
        "name": NAMES,
        "output": TEXT,
        "model": st.fixed_dictionaries(
            {"num_layers": st.integers(1, 99), "norm_epsilon": POSITIVE, "embed_scale": POSITIVE}
        ),
        "data": st.fixed_dictionaries(
            {
                "mixture": st.dictionaries(
                    NAMES, st.fixed_dictionaries({"store": TEXT, "weight": POSITIVE}), max_size=3
                ),
                "tokenizer": st.none() | TEXT,
            }
        ),
        "optimizer": st.fixed_dictionaries(
            {"learning_rate": st.none() | POSITIVE, "clip_norm": st.none() | POSITIVE}
        ),
        "train": st.fixed_dictionaries(
            {"duration": st.none() | DURATIONS, "init_from": st.none() | TEXT}
        ),
        "eval": st.fixed_dictionaries({"prompts": st.lists(TEXT, max_size=4)}),
    }
)


@settings(derandomize=True, deadline=None, phases=PHASES)
@given(CONFIGS)
def test_a_written_config_loads_again_equal(tmp_path_factory, plain):
    config = RunConfig.model_validate(plain)
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(str(path)) == config


@settings(derandomize=True, deadline=None, phases=PHASES)
@given(TEXT)
def test_any_text_is_read_back_by_readers_of_yaml_1_1_and_1_2(text):
    written = dump({"key": text})
    assert read_document(written, "x").plain() == {"key": text}
    assert yaml.safe_load(written) == {"key": text}


def test_words_that_look_like_numbers_or_truth_values_stay_words():
    words = ["3e-4", "1_000", "no", "on", "null", "~", "0x1f", "1:30", "12", "1.5", "<<", "=", ""]
    written = dump({"words": words})
    assert read_document(written, "x").plain() == {"words": words}
    assert yaml.safe_load(written) == {"words": words}


def test_every_preset_loads_again_equal(tmp_path):
    for index, name in enumerate(preset_names()):
        path = tmp_path / f"{index}.yaml"
        path.write_text(to_yaml(load_config(name)), encoding="utf-8")
        assert load_config(str(path)) == load_config(name), name


@pytest.mark.parametrize("text", ["\x85", "one\u2028two", "\u2029"])
def test_line_breaks_of_unicode_in_a_prompt_survive(tmp_path, text):
    config = RunConfig.model_validate({"eval": {"prompts": [text]}})
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    assert load_config(str(tmp_path / "run.yaml")) == config
