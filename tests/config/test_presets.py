"""Every preset loads, and published models have their published number of parameters."""

from pathlib import Path

import pytest

from maxlm.config import presets
from maxlm.config.derive import longest_length, resolve_model
from maxlm.config.load import load_config
from maxlm.config.presets import find_config, preset_folders, preset_names
from maxlm.model.count import count_parameters

PUBLISHED = {
    "gpt2-124m": 124_439_808,
    "gpt2-medium": 354_823_168,
    "llama2-7b": 6_738_415_616,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "qwen3-0.6b": 596_049_920,
    "gemma2-2b": 2_614_341_888,
    "gpt3-xl": 1_315_723_264,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-30b-a3b": 30_532_122_624,
    "llama3.1-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
    "gemma3-1b": 999_885_952,
    "olmo2-1b": 1_484_916_736,
    "phi4-14b": 14_659_507_200,
    "smollm2-135m": 134_515_008,
    "smollm3-3b": 3_075_098_624,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_404_352,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "phi4-mini": 3_836_021_760,
}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads(name):
    load_config(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_its_published_parameters(name):
    config = load_config(f"models/{name}")
    model = resolve_model(
        config.model, vocab_size=config.model.vocab_size, length=longest_length(config.data)
    )
    assert count_parameters(model) == PUBLISHED[name]


def test_the_small_models_are_what_their_names_say():
    for name, low, high in [("nano-4x128", 0.7e6, 1e6), ("small-6x384", 10e6, 11e6)]:
        model = resolve_model(load_config(f"models/{name}").model, vocab_size=257, length=256)
        assert low < count_parameters(model) < high


def test_a_preset_is_found_with_and_without_its_suffix():
    assert find_config("models/gpt2-124m") == find_config("models/gpt2-124m.yaml")


def test_an_installed_package_finds_its_own_copy(tmp_path, monkeypatch):
    installed = tmp_path / "site-packages" / "maxlm"
    for folder in ("models", "runs"):
        (installed / "configs" / folder).mkdir(parents=True)
    (installed / "configs" / "runs" / "mine.yaml").write_text("name: mine\n")
    (tmp_path / "site-packages" / "configs").mkdir()  # another package's
    monkeypatch.setattr(presets, "_PACKAGE", installed)
    assert preset_folders() == [installed / "configs"]
    assert preset_names() == ["runs/mine"]
    assert load_config("runs/mine").name == "mine"


def test_the_wheel_carries_the_presets():
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert 'configs = "maxlm/configs"' in project.read_text()
