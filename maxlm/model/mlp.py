"""The MLP of a block: plain, or gated (Shazeer, arXiv:2002.05202)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maxlm.config.schema import ModelConfig
from maxlm.kernels.activations import hidden_of
from maxlm.model.parameter import Initializer
from maxlm.model.projection import Projection
from maxlm.parallel.axes import constrain


class MLP(nnx.Module):
    """`down(act(up x))`, or gated `down(act(gate x) × up x)`, see `hidden_of`."""

    def __init__(
        self,
        config: ModelConfig,
        rngs: nnx.Rngs,
        *,
        hidden: int | None = None,
        init: Initializer,
        output_init: Initializer,
        dtype: jnp.dtype,
    ):
        embed, hidden = config.embed_dim, hidden or config.mlp_dim
        assert hidden
        self.hidden_of = hidden_of(config)

        def project(axes: tuple[str, str], init: Initializer) -> Projection:
            shape = (embed, hidden) if axes[0] == "embed" else (hidden, embed)
            return Projection(
                rngs, shape, axes=axes, inputs=1, init=init, bias=config.mlp_bias, dtype=dtype
            )

        gated = config.mlp.is_gated
        self.gate = project(("embed", "mlp"), init) if gated else None
        self.up = project(("embed", "mlp"), init)
        self.down = project(("mlp", "embed"), output_init)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `x [B, T, D]` to `[B, T, D]`."""
        up = checkpoint_name(constrain(self.up(x), "batch", "length", "mlp"), "mlp_up")
        gate = None
        if self.gate is not None:
            gate = checkpoint_name(constrain(self.gate(x), "batch", "length", "mlp"), "mlp_gate")
        return self.down(self.hidden_of(gate, up))
