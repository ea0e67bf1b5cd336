"""Parity with transformers on every Python: logits and greedy text against what it once said."""

import numpy as np
import pytest

from maxlm.generate.engine import Engine
from maxlm.generate.request import Request
from maxlm.generate.sampling import SamplingOptions
from maxlm.model.inference import for_inference
from tests.cases import few
from tests.interop.goldens import NEW, POSITIONS, PROMPT_LENGTHS, path_of
from tests.interop.tiny import (
    BEYOND_LOGITS,
    TINY,
    batch_of,
    logits_of,
    prompts,
    read_tiny,
    write_folder,
)


@pytest.mark.parametrize("name", TINY)
def test_logits_are_those_of_transformers(tmp_path, name):
    write_folder(name, tmp_path)
    model, params = read_tiny(tmp_path)
    golden = np.load(path_of(name))["logits"]
    logits = logits_of(model, params, batch_of(prompts()))
    assert golden.std() > 1
    np.testing.assert_allclose(logits[:, POSITIONS], golden, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", few(TINY, BEYOND_LOGITS.__contains__))
def test_greedy_text_is_that_of_transformers(tmp_path, name):
    write_folder(name, tmp_path)
    model, params = read_tiny(tmp_path)
    texts = [row[:n].tolist() for row, n in zip(prompts(), PROMPT_LENGTHS, strict=True)]
    engine = Engine.of(*for_inference(model, params), context_length=40)
    for text in texts:
        engine.submit(Request(text, NEW, SamplingOptions(temperature=0)))
    found = [[token.id for token in tokens] for tokens in engine.run()]
    assert found == np.load(path_of(name))["greedy"].tolist()


def test_there_is_a_golden_file_for_each_model_and_no_other():
    assert {path_of(name) for name in TINY} == set(path_of("gpt2").parent.glob("*.npz"))
