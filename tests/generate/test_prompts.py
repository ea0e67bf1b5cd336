import json

import pytest

from maxlm.config.schema import DataConfig
from maxlm.data.tokenizers import load_tokenizer
from maxlm.errors import ConfigError
from maxlm.generate.prompts import encode_prompts
from tests.small_run import write_store


@pytest.mark.parametrize(
    ("markers", "begins"),
    [(None, True), ("both", True), ("bos", True), ("eos", False), ("none", False), ("gone", True)],
)
def test_a_prompt_begins_as_the_training_documents_do(tmp_path, markers, begins):
    store = write_store(tmp_path / "store", {"train": ["Some text."]})
    path = store / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"settings": {"document_markers": markers or "both"}}))
    where = str(store) if markers != "gone" else str(tmp_path / "gone")
    data = DataConfig.model_validate({"mixture": {"text": {"store": where}}})
    tokenizer = load_tokenizer("byte")
    first = [tokenizer.bos_id] if begins else []
    assert encode_prompts(tokenizer, ["ab", "c"], data) == [[*first, 97, 98], [*first, 99]]
    if begins:
        assert encode_prompts(tokenizer, [""], data) == [first]
    else:
        with pytest.raises(ConfigError, match=r"prompt 2 of 2 is empty.*give it some text"):
            encode_prompts(tokenizer, ["ab", ""], data)
