"""A run is continued under changed mechanics, and refused under changed meaning."""

import pytest
import yaml

from maxlm.config.derive import Facts, resolve
from maxlm.config.load import load_config, load_with_origins, to_yaml
from maxlm.config.meaning import DERIVABLE, MECHANICS, is_meaningful, keep_derived, meaning_diff
from maxlm.config.options import all_options

FACTS = Facts(886_016, 853_120, 257, 1_000_000, 1, "cpu")


def saved_of(*overrides):
    config = load_config("models/nano-4x128", [*SOURCE, *overrides])
    return yaml.safe_load(to_yaml(resolve(config, FACTS).config))


SOURCE = ["data.mixture.a.store=stores/a", "train.duration=1000"]


@pytest.mark.parametrize(
    "override",
    ["logging.every=3", "eval.every=7", "parallel.fsdp=1", "data.workers=9", "checkpoint.keep_last=9",
     "train.accumulation=4", "train.loss_chunk=64", "eval.sets.x.store=y", "output=elsewhere",
     "parallel.rematerialization=full", "train.duration=1k steps"],
)  # fmt: skip
def test_mechanics_may_change(override):
    current = load_config("models/nano-4x128", [*SOURCE, override])
    assert meaning_diff(saved_of(), current) == []


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.num_layers=5", "model.num_layers: saved 4, now 5"),
        ("optimizer.learning_rate=0.002", "optimizer.learning_rate: saved 0.001, now 0.002"),
        ("data.seed=1", "data.seed: saved 0, now 1"),
        ("train.seed=1", "train.seed: saved 0, now 1"),
        ("train.precision=bfloat16", "train.precision: saved float32, now bfloat16"),
        ("optimizer.clip_norm=null", "optimizer.clip_norm: saved 1.0, now null"),
        ("data.mixture.b.store=x", "data.mixture.b.store: saved not there, now x"),
        ("data.phases=[{length: 8}]", "data.phases.0.length: saved not there, now 8"),
        ("model.attention_pattern=[global, global]", "model.attention_pattern: saved"),
        ("schedule.kind=cosine", "schedule.kind: saved wsd, now cosine"),
    ],
)
def test_meaning_may_not_change(override, line):
    current = load_config("models/nano-4x128", [*SOURCE, "optimizer.learning_rate=0.001", override])
    found = meaning_diff(saved_of("optimizer.learning_rate=0.001"), current)
    assert any(entry.startswith(line) for entry in found)


def test_the_difference_says_where_the_new_value_was_written():
    loaded = load_with_origins("models/nano-4x128", [*SOURCE, "train.seed=1"])
    lines = meaning_diff(saved_of(), loaded.config, loaded.origins)
    assert lines == ["train.seed: saved 0, now 1 (command line: train.seed=1)"]


def test_another_duration_is_refused_with_the_way_to_go_on():
    lines = meaning_diff(
        saved_of(), load_config("models/nano-4x128", [*SOURCE, "train.duration=2000"])
    )
    assert lines[0] == "train.duration: saved 1000 steps, now 2000 steps"
    assert "--branch-from" in lines[-1]


def test_an_option_of_an_older_version_is_a_difference():
    saved = saved_of()
    saved["model"]["dropout"] = 0.1
    lines = meaning_diff(saved, load_config("models/nano-4x128", SOURCE))
    assert lines == ["model.dropout: saved 0.1, but this version has no such option"]


def test_an_option_that_an_older_version_lacked_counts_as_its_default():
    saved = saved_of()
    del saved["model"]["embed_norm"]
    assert meaning_diff(saved, load_config("models/nano-4x128", SOURCE)) == []
    changed = load_config("models/nano-4x128", [*SOURCE, "model.embed_norm=true"])
    assert meaning_diff(saved, changed) == ["model.embed_norm: saved false, now true"]


def test_derived_values_are_kept_where_the_rules_would_now_give_others():
    saved = saved_of()
    config = load_config("models/nano-4x128", SOURCE)
    elsewhere = Facts(886_016, 853_120, 257, 1_000_000, 6, "tpu")
    kept = resolve(keep_derived(saved, config), elsewhere).config
    assert kept.data.batch_size == saved["data"]["batch_size"]
    assert kept.train.precision == "float32"
    assert meaning_diff(saved, kept) == []
    assert meaning_diff(saved, resolve(config, elsewhere).config) != []


def test_the_lists_name_existing_options():
    keys = {option.key for option in all_options()}
    assert keys >= MECHANICS
    assert keys >= DERIVABLE
    assert not any(is_meaningful(key) for key in MECHANICS)
    assert all(is_meaningful(key) for key in DERIVABLE)
