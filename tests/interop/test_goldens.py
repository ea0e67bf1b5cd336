"""Parity with transformers on every Python: logits and greedy text against what it once said."""

import numpy as np
import pytest

from maxlm.generate.generator import Generator
from maxlm.generate.sampling import SamplingOptions
from tests.interop.goldens import NEW, POSITIONS, PROMPT_LENGTHS, path_of
from tests.interop.tiny import TINY, batch_of, logits_of, prompts, read_tiny, write_folder


@pytest.mark.parametrize("name", TINY)
def test_logits_are_those_of_transformers(tmp_path, name):
    write_folder(name, tmp_path)
    model, params = read_tiny(tmp_path)
    golden = np.load(path_of(name))["logits"]
    logits = logits_of(model, params, batch_of(prompts()))
    assert golden.std() > 1
    np.testing.assert_allclose(logits[:, POSITIONS], golden, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_greedy_text_is_that_of_transformers(tmp_path, name):
    write_folder(name, tmp_path)
    model, params = read_tiny(tmp_path)
    texts = [row[:n].tolist() for row, n in zip(prompts(), PROMPT_LENGTHS, strict=True)]
    stream = Generator(model, context_length=40).stream(
        params, texts, max_tokens=NEW, options=SamplingOptions(temperature=0)
    )
    expected = np.load(path_of(name))["greedy"].tolist()
    assert np.stack(list(stream), axis=1).tolist() == expected


def test_there_is_a_golden_file_for_each_model_and_no_other():
    assert {path_of(name) for name in TINY} == set(path_of("gpt2").parent.glob("*.npz"))
