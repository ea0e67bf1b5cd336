"""A tiny model of bytes as a Hugging Face folder, with a chat template."""

from __future__ import annotations

from pathlib import Path

from tests.interop.tiny import write_folder

SIZE = 320
TEMPLATE = "{% for m in messages %}<|257|>{{ m.role }}: {{ m.content }}{% endfor %}<|258|>"


def write_chat_model(folder: Path) -> None:
    """Write it."""
    write_folder("qwen3", folder, vocab_size=SIZE)
    _add_tokenizer(folder, SIZE)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def _add_tokenizer(folder, size):
    """A tokenizer.json of bytes, padded to the model's vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    vocabulary |= {f"<|{i}|>": i for i in range(len(letters), size)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([f"<|{i}|>" for i in range(len(letters), size)])
    made.save(str(folder / "tokenizer.json"))
