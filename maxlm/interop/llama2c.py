"""Models of llama2.c (https://github.com/karpathy/llama2.c): one file of a header and float32 arrays.

Version 0, which `export.py` writes as `legacy`: seven int32 (dim, hidden_dim, layers, heads, kv_heads,
vocabulary, negative where the output projection is its own; length), then the arrays of all layers one
after the other. RoPE turns neighbours, as in Meta's Llama, and not the halves of a head. Weights alone
are read; the tokenizer is another file.
"""

from __future__ import annotations

import math
import struct
from dataclasses import replace

import numpy as np

from maxlm import storage
from maxlm.config.derive_model import resolve_model
from maxlm.config.schema import ModelConfig
from maxlm.errors import CheckpointError
from maxlm.interop.families.llama import LLAMA
from maxlm.interop.safetensors import Entry
from maxlm.interop.transforms import Matrix

_HEADER = struct.Struct("<7i")
_TURNED = ("attention.query.kernel", "attention.key.kernel")

LLAMA2C = replace(
    LLAMA,
    rules=tuple(
        replace(rule, transform=Matrix(rope_pairs=True)) if rule.ours[0] in _TURNED else rule
        for rule in LLAMA.rules
    ),
)


class Llama2cFile:
    """The tensors of a file by Llama's names, and the model that its header describes.

    Attributes:
        folder: the path, for messages.
        entries: as those of a safetensors folder.
        model: resolved.

    Raises:
        CheckpointError: it is no such file, or is cut short.
    """

    def __init__(self, path: str):
        self.folder = path
        size = storage.size(path)
        header = storage.read_range(path, 0, _HEADER.size) if size >= _HEADER.size else b""
        if len(header) < _HEADER.size:
            raise CheckpointError(f"{path}: truncated: {size} bytes, and 28 begin a llama2.c model")
        if header[:4] == b"ak42":
            raise CheckpointError(
                f"{path}: version 1 or 2 of llama2.c's format; write it anew with export.py --version 0"
            )
        numbers = _HEADER.unpack(header)
        dim, hidden, layers, heads, kv_heads, vocab, length = numbers
        fits = all(0 < n < 1 << 24 for n in (*numbers[:5], abs(vocab), length))
        if not fits or dim % heads or heads % kv_heads:
            raise CheckpointError(f"{path}: no llama2.c model: its header says {list(numbers)}")
        model = ModelConfig(
            vocab_size=abs(vocab),
            num_layers=layers,
            embed_dim=dim,
            num_heads=heads,
            num_kv_heads=kv_heads,
            mlp_dim=hidden,
            norm_epsilon=1e-5,
            max_length=length,
            tie_embeddings=vocab > 0,
        )
        self.model = resolve_model(model, vocab_size=abs(vocab), length=length)
        self.entries = _entries(path, self.model, size)

    def read(self, name: str) -> np.ndarray:
        """A tensor, float32."""
        entry = self.entries[name]
        stop = entry.start + entry.bytes
        content = storage.retried(lambda: storage.read_range(entry.path, entry.start, stop))
        return np.frombuffer(content, "<f4").reshape(entry.shape)


def _entries(path: str, model: ModelConfig, size: int) -> dict[str, Entry]:
    """Where each tensor lies. Raises CheckpointError when the file ends before the last one."""
    m = model
    assert m.vocab_size and m.num_kv_heads and m.head_dim and m.mlp_dim and m.max_length
    heads, kv_heads = m.num_heads * m.head_dim, m.num_kv_heads * m.head_dim
    layer = "model.layers.{}."
    # Per group: the name and the shape of one layer; the layers follow one another.
    groups: list[tuple[str, tuple[int, ...]]] = [
        ("model.embed_tokens.weight", (m.vocab_size, m.embed_dim)),
        (layer + "input_layernorm.weight", (m.embed_dim,)),
        (layer + "self_attn.q_proj.weight", (heads, m.embed_dim)),
        (layer + "self_attn.k_proj.weight", (kv_heads, m.embed_dim)),
        (layer + "self_attn.v_proj.weight", (kv_heads, m.embed_dim)),
        (layer + "self_attn.o_proj.weight", (m.embed_dim, heads)),
        (layer + "post_attention_layernorm.weight", (m.embed_dim,)),
        (layer + "mlp.gate_proj.weight", (m.mlp_dim, m.embed_dim)),
        (layer + "mlp.down_proj.weight", (m.embed_dim, m.mlp_dim)),
        (layer + "mlp.up_proj.weight", (m.mlp_dim, m.embed_dim)),
        ("model.norm.weight", (m.embed_dim,)),
        # Tables of cosines and sines, which follow from the length.
        ("", (m.max_length * m.head_dim,)),
    ]
    if not m.tie_embeddings:
        groups.append(("lm_head.weight", (m.vocab_size, m.embed_dim)))
    entries, start = {}, _HEADER.size
    for name, shape in groups:
        count = m.num_layers if name.startswith("model.layers.") else 1
        for index in range(count):
            length = 4 * math.prod(shape)
            if name:
                entries[name.format(index)] = Entry(path, "F32", shape, start, length)
            start += length
    if start != size:
        what = "truncated" if size < start else "longer than its header says"
        raise CheckpointError(f"{path}: {what}: {start:,} bytes are needed, the file has {size:,}")
    return entries
