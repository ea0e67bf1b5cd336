"""The trained stories260K in its two forms, a llama2.c file and a Hugging Face folder."""

import os
from pathlib import Path

import numpy as np
import pytest

from maxlm.interop.safetensors import TensorFolder
from maxlm.train.exporting import export_huggingface
from maxlm.train.importing import import_huggingface, import_llama2c
from maxlm.train.run_folder import RunFolder
from tests.small_run import call, checksums, devices

os.environ.setdefault("HF_HUB_OFFLINE", "1")
FOLDER = Path(__file__).parents[2].parent / "shared" / "data" / "asset-model-stories260k"
PROMPT, TOKENS = "Once upon a time", 60

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason=f"the trained model is not at {FOLDER}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of the two forms, and their exports."""
    folder = tmp_path_factory.mktemp("stories")
    with devices(1):
        import_huggingface(str(FOLDER / "hf"), str(folder / "hf"))
        import_llama2c(
            str(FOLDER / "stories260K.bin"),
            str(folder / "bin"),
            tokenizer=str(FOLDER / "hf" / "tokenizer.model"),
        )
    for name in ("hf", "bin"):
        export_huggingface(str(folder / name), str(folder / f"{name}-out"))
    return folder


def test_both_forms_are_the_same_weights(runs):
    assert checksums(RunFolder(str(runs / "hf"))) == checksums(RunFolder(str(runs / "bin")))


def test_the_export_is_the_original_to_the_bit(runs):
    theirs = TensorFolder(str(FOLDER / "hf"))
    for name in ("hf-out", "bin-out"):
        ours = TensorFolder(str(runs / name))
        assert ours.entries.keys() == theirs.entries.keys()
        for tensor in theirs.entries:
            np.testing.assert_array_equal(ours.read(tensor), theirs.read(tensor), tensor)


@pytest.mark.parametrize("form", ["hf", "bin"])
def test_the_pipeline_of_transformers_writes_what_maxlm_generate_writes(runs, capsys, form):
    reason = "torch is what our models are compared with; it comes with maxlm[test] on Python 3.11"
    pytest.importorskip("torch", reason=reason)
    transformers = pytest.importorskip("transformers", reason=reason)
    arguments = ["--prompt", PROMPT, "--max-tokens", str(TOKENS), "--temperature", "0"]
    assert call("generate", str(runs / form), *arguments) == 0
    ours = capsys.readouterr().out
    pipeline = transformers.pipeline("text-generation", model=str(runs / f"{form}-out"))
    theirs = pipeline(PROMPT, do_sample=False, max_new_tokens=TOKENS)[0]["generated_text"]
    assert ours.rstrip("\n") == theirs.rstrip("\n") and len(theirs) > 100
