"""The Python face on a run and on a Hugging Face folder: generate, stream, score, logits, chat."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest

import maxlm
from maxlm.errors import CheckpointError, ConfigError
from maxlm.generate.request import Finish
from maxlm.generate.sampling import SamplingOptions
from maxlm.train.importing import import_huggingface
from tests.generate.chat_model import write_chat_model
from tests.interop.tiny import batch_of, logits_of, read_tiny

TEXT = "The cat sat, and the mat."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    write_chat_model(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [259, 260]}')
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return maxlm.load(str(folder))


def test_logits_are_those_of_the_model_read_in_another_way(folder, model):
    definition, params = read_tiny(folder)
    ids = np.array([model.tokenizer.encode(TEXT)])
    np.testing.assert_allclose(
        model.logits(TEXT), logits_of(definition, params, batch_of(ids))[0], atol=2e-5
    )


def test_a_score_is_the_sum_of_its_tokens(model):
    score = model.score(TEXT)
    logits = model.logits(TEXT).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    ids = model.tokenizer.encode(TEXT)
    wanted = logprobs[np.arange(len(ids) - 1), ids[1:]]
    assert score.tokens == ids and score.num_bytes == len(TEXT) - 1
    np.testing.assert_allclose(score.logprobs, wanted, atol=1e-4)
    assert score.logprob == pytest.approx(wanted.sum(), abs=1e-3)
    assert score.perplexity == pytest.approx(math.exp(-wanted.mean()), rel=1e-4)
    assert score.bits_per_byte == pytest.approx(
        -wanted.sum() / math.log(2) / (len(TEXT) - 1), rel=1e-4
    )


def test_one_text_or_several_are_continued_and_streamed_alike(model):
    options = {"max_tokens": 6, "temperature": 0}
    one = model.generate("The cat", **options)
    assert len(one.tokens) == 6 and one.finish is Finish.LENGTH
    assert model.tokenizer.decode(one.tokens) == one.text
    assert "".join(model.stream("The cat", **options)) == one.text
    several = model.generate(["The cat", "A"], **options)
    assert several[0].text == one.text and several[1].text != one.text
    assert one.tokens[0] == model.logits("The cat")[-1].argmax()


def test_a_stream_that_is_dropped_frees_the_engine(model):
    stream = model.stream("The cat", temperature=0)
    next(stream)
    stream.close()
    assert not model.engine.busy


def test_calls_that_overlap_each_get_what_is_theirs(model):
    options = {"max_tokens": 8, "temperature": 0}
    alone = [model.generate(text, **options).text for text in ("The cat", "A", "So")]
    stream = model.stream("The cat", **options)
    begun = next(stream)
    other = model.stream("A", **options)
    between = next(other)
    assert model.generate("So", **options).text == alone[2]
    assert begun + "".join(stream) == alone[0]
    assert between + "".join(other) == alone[1]
    assert not model.engine.busy


def test_what_ends_an_answer_is_read_from_the_models_own_files(model):
    assert {259, 260} <= model.stop
    answer = model.generate("The cat", max_tokens=5, logit_bias={260: 100.0})
    assert (answer.tokens, answer.text, answer.finish) == ([], "", Finish.STOP)


def test_a_chat_is_the_template_with_its_specials_as_specials(model):
    messages = [{"role": "user", "content": "hi <|300|>"}]
    request = model.chat_request(messages, 4, SamplingOptions())
    assert request.prompt[0] == 257 and request.prompt[-1] == 258
    assert model.chat(messages, max_tokens=4, temperature=0).finish is not None


def test_beams_come_best_first(model):
    found = model.beams("The cat", max_tokens=3, beams=3)
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    assert len(found) == 3


def test_a_run_and_the_folder_that_it_came_from_say_the_same(tmp_path, folder, model):
    run = tmp_path / "run"
    import_huggingface(str(folder), str(run))
    loaded = maxlm.load(str(run))
    np.testing.assert_array_equal(loaded.logits(TEXT), model.logits(TEXT))
    assert loaded.stop == model.stop and loaded.chat_template is not None


def test_what_cannot_be_used_is_refused(tmp_path, folder, model):
    with pytest.raises(ConfigError, match=r"prompt 1 of 1 is empty"):
        model.generate("")
    length = model.context_length
    with pytest.raises(
        ConfigError, match=f"has {length + 5:,} tokens, and this model sees {length}"
    ):
        model.generate(["fine", "x" * (length + 5)])
    assert not model.engine.busy
    with pytest.raises(ConfigError, match=f"has {length + 5:,} tokens"):
        model.score("x" * (length + 5))
    with pytest.raises(ConfigError, match="no valid UTF-8"):
        model.generate("a", stop=["\udcff"])
    assert not model.engine.busy
    with pytest.raises(CheckpointError, match="there is no such run"):
        maxlm.load(str(tmp_path / "nowhere"))
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="no chat template"):
        maxlm.load(str(bare)).chat([{"role": "user", "content": "hi"}])
