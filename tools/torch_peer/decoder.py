"""A plain PyTorch decoder that computes what maxlm's does, for the families that benchmarks use.

`B` batch, `T` length, `H` query heads, `K` key-value heads, `C` head_dim, `D` width. Parameters are
float32; they are cast where they are used, as maxlm does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
SAME: dict[str, Any] = {
    "norm_placement": "pre",
    "embed_norm": False,
    "qk_norm": False,
    "attention_pattern": ["global"],
    "attention_logit_cap": None,
    "output_logit_cap": None,
    "embed_scale": None,
    "num_experts": None,
}
ACTIVATIONS = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
}


class Linear(nn.Module):
    """`x Wᵀ + b` in `x`'s dtype, the bias added in float32."""

    def __init__(self, inputs: int, outputs: int, std: float, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * std)
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x […, inputs]` to `[…, outputs]`."""
        y = functional.linear(x, self.weight.to(x.dtype))
        return y if self.bias is None else (y + self.bias).to(x.dtype)


class Norm(nn.Module):
    """RMS or layer norm in float32."""

    def __init__(self, model: dict[str, Any]):
        super().__init__()
        self.layer, self.epsilon = model["norm"] == "layer", model["norm_epsilon"]
        self.scale = nn.Parameter(torch.ones(model["embed_dim"]))
        has_bias = self.layer and model["norm_bias"]
        self.bias = nn.Parameter(torch.zeros(model["embed_dim"])) if has_bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last dim; keeps `x`'s dtype."""
        shape, wide = x.shape[-1:], x.float()
        if self.layer:
            y = functional.layer_norm(wide, shape, self.scale, self.bias, self.epsilon)
        else:
            y = functional.rms_norm(wide, shape, self.scale, self.epsilon)
        return y.to(x.dtype)


class Block(nn.Module):
    """Attention and MLP, normed before."""

    def __init__(self, model: dict[str, Any]):
        super().__init__()
        embed, hidden, std = model["embed_dim"], model["mlp_dim"], model["init_std"]
        self.heads, self.kv_heads, self.width = (
            model[name] for name in ("num_heads", "num_kv_heads", "head_dim")
        )
        qkv_bias, out_bias = model["attention_bias"] != "none", model["attention_bias"] == "all"
        out_std = std / (2 * model["num_layers"]) ** 0.5
        linear = partial(Linear, std=std)
        self.attention_norm, self.mlp_norm = Norm(model), Norm(model)
        self.query = linear(embed, self.heads * self.width, bias=qkv_bias)
        self.key = linear(embed, self.kv_heads * self.width, bias=qkv_bias)
        self.value = linear(embed, self.kv_heads * self.width, bias=qkv_bias)
        self.output = Linear(self.heads * self.width, embed, out_std, out_bias)
        gated = model["mlp"] == "gated"
        self.gate = linear(embed, hidden, bias=model["mlp_bias"]) if gated else None
        self.up = linear(embed, hidden, bias=model["mlp_bias"])
        self.down = Linear(hidden, embed, out_std, model["mlp_bias"])
        self.activation = ACTIVATIONS[model["activation"]]

    def forward(self, x: torch.Tensor, rope: Any, attend: Attend) -> torch.Tensor:
        """`x [B, T, D]` to the next layer's."""
        h = self.attention_norm(x)
        query = self._heads(self.query(h), self.heads)
        key = self._heads(self.key(h), self.kv_heads)
        value = self._heads(self.value(h), self.kv_heads)
        if rope is not None:
            query, key = rotate(query, *rope), rotate(key, *rope)
        out = attend(query, key, value)  # [B, H, T, C]
        x = x + self.output(out.transpose(1, 2).flatten(2))
        h = self.mlp_norm(x)
        up = self.up(h)
        up = self.activation(up) if self.gate is None else self.activation(self.gate(h)) * up
        return x + self.down(up)

    def _heads(self, x: torch.Tensor, count: int) -> torch.Tensor:
        return x.unflatten(-1, (count, self.width)).transpose(1, 2)


class Decoder(nn.Module):
    """A causal language model of maxlm's `model` section."""

    def __init__(self, model: dict[str, Any], precision: torch.dtype):
        super().__init__()
        other = {k: model[k] for k, v in SAME.items() if model.get(k, v) != v}
        if other:
            raise SystemExit(f"the PyTorch peer has no {other}; it has {SAME}")
        self.model, self.precision = model, precision
        multiple = model["vocab_multiple"]
        self.rows = -(-model["vocab_size"] // multiple) * multiple
        std, embed = model["init_std"], model["embed_dim"]
        self.embedding = nn.Parameter(torch.randn(self.rows, embed) * std)
        learned = model["positions"] == "learned"
        shape = (model["max_length"], embed)
        self.positions = nn.Parameter(torch.randn(*shape) * std) if learned else None
        self.blocks = nn.ModuleList(Block(model) for _ in range(model["num_layers"]))
        self.final_norm = Norm(model)
        tied = model["tie_embeddings"]
        self.head = None if tied else nn.Parameter(torch.randn(self.rows, embed) * std)

    def loss(self, batch: Mapping[str, torch.Tensor], attend: Attend, chunk: Any) -> torch.Tensor:
        """Mean cross-entropy over the counted targets."""
        x = self.embedding[batch["tokens"]].to(self.precision)
        if self.positions is not None:
            x = x + self.positions[batch["positions"]].to(x.dtype)
        rope = None
        if self.model["positions"] == "rope":
            width, theta = self.model["head_dim"], self.model["rope_theta"]
            exponents = torch.arange(0, width, 2, device=x.device).float() / width
            angles = batch["positions"][:, None, :, None].float() * theta**-exponents
            rope = (angles.cos(), angles.sin())  # [B, 1, T, C/2]
        for block in self.blocks:
            x = block(x, rope, attend)
        hidden = self.final_norm(x).flatten(0, 1)
        targets, weights = batch["targets"].flatten().long(), batch["loss_weights"].flatten()
        if chunk is None:
            total = self._nll(hidden, targets, weights)
        else:
            parts = zip(*(a.split(chunk) for a in (hidden, targets, weights)), strict=True)
            pieces = [checkpoint(self._nll, *part, use_reentrant=False) for part in parts]
            total = torch.stack(pieces).sum()
        return total / weights.sum()

    def _nll(
        self, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        table = self.embedding if self.head is None else self.head
        # The table's padding rows are left out, as maxlm masks them.
        logits = functional.linear(hidden, table.to(hidden.dtype)).float()
        logits = logits[:, : self.model["vocab_size"]]
        return (functional.cross_entropy(logits, targets, reduction="none") * weights).sum()

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take maxlm's parameters, by its names and shapes."""
        own = dict(self.named_parameters())
        for name, array in arrays.items():
            short = name.removeprefix("segments.0.blocks.0.")
            if short == name:
                self._assign(own[name], array)
                continue
            short = short.replace("attention.", "").replace("mlp.", "")
            for layer, part in enumerate(array):
                theirs = own[f"blocks.{layer}.{short.replace('kernel', 'weight')}"]
                if short.endswith("kernel"):
                    inputs = theirs.shape[1]
                    part = part.reshape(inputs, -1).T
                self._assign(theirs, part.reshape(theirs.shape))

    def _assign(self, parameter: nn.Parameter, array: np.ndarray) -> None:
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.array(array)))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate `x [B, H, T, C]`, the first half of a head against the second."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x.dtype)


def attention_of(segments: torch.Tensor, packed: bool, compiled: bool) -> Attend:
    """Causal attention inside the segments `[B, T]` of a batch."""
    sdpa = partial(functional.scaled_dot_product_attention, enable_gqa=True)
    if not packed:
        return partial(sdpa, is_causal=True)
    length = segments.shape[1]
    if segments.device.type == "cpu":
        same = segments[:, None, :, None] == segments[:, None, None, :]
        return partial(sdpa, attn_mask=same & torch.ones(length, length, dtype=torch.bool).tril())
    from torch.nn.attention.flex_attention import flex_attention

    def visible(b: Any, h: Any, query: Any, key: Any) -> Any:
        return (query >= key) & (segments[b, query] == segments[b, key])

    make = _block_mask(compiled)
    blocks = make(visible, segments.shape[0], None, length, length, device=segments.device)
    return partial(flex_attention, block_mask=blocks, enable_gqa=True)


@cache
def _block_mask(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import create_block_mask

    return torch.compile(create_block_mask) if compiled else create_block_mask
