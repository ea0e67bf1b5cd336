"""A tokenizer as the files that transformers' AutoTokenizer reads.

In: any tokenizer of ours; out: `tokenizer.json`, which holds the whole pipeline, and
`tokenizer_config.json`, which names the specials. A conversion is tried on texts before it is handed
out: ids that differ are an error and not a surprise.
"""

from __future__ import annotations

import json
from typing import Any

from maxlm.data.tokenizers.byte import ByteTokenizer
from maxlm.data.tokenizers.huggingface import FILE, HuggingFaceTokenizer
from maxlm.data.tokenizers.huggingface_spec import byte_letters
from maxlm.data.tokenizers.protocol import Tokenizer
from maxlm.data.tokenizers.sentencepiece_json import sentencepiece_pipeline
from maxlm.data.tokenizers.sentencepiece_model import SentencePieceTokenizer
from maxlm.errors import TokenizerError

CONFIG_FILE = "tokenizer_config.json"
_NAMES = {
    "bos_id": "bos_token",
    "eos_id": "eos_token",
    "pad_id": "pad_token",
    "unk_id": "unk_token",
}
_TEXTS = (
    "Once upon a time,  there was a fox.\n\nIt said: “naïve café – 東京 🦊”!",
    " leading space, trailing space ",
    "def f(x):\n\treturn x**2  # 12345\r\n",
)


def huggingface_files(
    tokenizer: Tokenizer, *, add_bos: bool, max_length: int | None
) -> dict[str, bytes]:
    """Files by name.

    Args:
        tokenizer: of any kind.
        add_bos: whether a prompt begins with `bos`.
        max_length: tokens that the model reads at most.

    Raises:
        TokenizerError: it has no equal among the pipelines of the tokenizers library.
    """
    from tokenizers import processors

    pipeline = _pipeline(tokenizer)
    specials = {name: getattr(tokenizer, key) for key, name in _NAMES.items()}
    texts = {n: pipeline.id_to_token(i) for n, i in specials.items() if i is not None}
    if add_bos and tokenizer.bos_id is not None:
        bos = texts["bos_token"]
        template = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_id)]
        )
        before = pipeline.post_processor
        pipeline.post_processor = (
            template if before is None else processors.Sequence([before, template])
        )
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **texts}
    config["clean_up_tokenization_spaces"] = False
    if max_length is not None:
        config["model_max_length"] = max_length
    _check(tokenizer, pipeline)
    return {
        FILE: pipeline.to_str(pretty=True).encode(),
        CONFIG_FILE: (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
    }


def _pipeline(tokenizer: Tokenizer) -> Any:
    """A pipeline of the tokenizers library with the same ids."""
    from tokenizers import Tokenizer as Pipeline

    if isinstance(tokenizer, HuggingFaceTokenizer):
        return Pipeline.from_str(tokenizer.to_json())
    if isinstance(tokenizer, ByteTokenizer):
        return _byte_pipeline(tokenizer)
    if isinstance(tokenizer, SentencePieceTokenizer):
        return sentencepiece_pipeline(tokenizer)
    raise TokenizerError(f"a tokenizer of kind '{tokenizer.kind}' has no tokenizer.json")


def _byte_pipeline(tokenizer: ByteTokenizer) -> Any:
    """Byte-level BPE that merges nothing."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Pipeline

    pipeline = Pipeline(models.BPE(vocab=byte_letters(), merges=[]))
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pipeline.decoder = decoders.ByteLevel()
    end = tokenizer.token_text(tokenizer.vocab_size - 1)
    pipeline.add_special_tokens([AddedToken(end, normalized=False)])
    return pipeline


def _check(tokenizer: Tokenizer, pipeline: Any) -> None:
    for text in _TEXTS:
        ours, theirs = tokenizer.encode(text), pipeline.encode(text, add_special_tokens=False).ids
        if ours != theirs:
            raise TokenizerError(
                f"this {tokenizer.kind} tokenizer has no equal tokenizer.json: {text!r} is "
                f"{ours[:12]} … here and {theirs[:12]} … there; export the weights alone "
                "(--no-tokenizer) and hand the tokenizer over as it is"
            )
