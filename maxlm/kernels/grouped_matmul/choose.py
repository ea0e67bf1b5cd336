"""Which grouped matmul runs: what each can do, what is picked on which hardware, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from maxlm.config.schema import ExpertMatmul
from maxlm.errors import ConfigError
from maxlm.kernels.grouped_matmul.blocks import blocks
from maxlm.kernels.grouped_matmul.megablox import megablox
from maxlm.kernels.grouped_matmul.ragged import ragged_dot
from maxlm.kernels.grouped_matmul.reference import reference

GroupedMatmul = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
EVERYWHERE = frozenset({"cpu", "gpu", "tpu"})


@dataclass(frozen=True)
class Implementation:
    """A grouped matmul and what it declares of itself.

    Attributes:
        function: see `maxlm.kernels.grouped_matmul`.
        platforms: where it runs.
        dtypes: of rows and matrices.
    """

    function: GroupedMatmul
    platforms: frozenset[str] = EVERYWHERE
    dtypes: frozenset[str] = frozenset({"bfloat16", "float32", "float64"})


IMPLEMENTATIONS = {
    ExpertMatmul.REFERENCE: Implementation(reference),
    ExpertMatmul.BLOCKS: Implementation(blocks),
    ExpertMatmul.RAGGED_DOT: Implementation(ragged_dot),
    ExpertMatmul.MEGABLOX: Implementation(
        megablox, frozenset({"tpu"}), frozenset({"bfloat16", "float32"})
    ),
}
# By platform, the fastest first, and why.
PREFERRED = {
    "tpu": (ExpertMatmul.MEGABLOX, ExpertMatmul.RAGGED_DOT),
    "gpu": (ExpertMatmul.RAGGED_DOT,),
    "cpu": (ExpertMatmul.BLOCKS,),
}
REASONS = {
    ExpertMatmul.MEGABLOX: "a Pallas kernel with tiles of our choice",
    ExpertMatmul.RAGGED_DOT: "XLA's own grouped matmul",
    ExpertMatmul.BLOCKS: "on a CPU ragged_dot multiplies every row with every expert",
}


@dataclass(frozen=True)
class Choice:
    """The implementation that runs, and why."""

    kind: ExpertMatmul
    reason: str

    @property
    def function(self) -> GroupedMatmul:
        """The grouped matmul itself."""
        return IMPLEMENTATIONS[self.kind].function


def choose(wanted: ExpertMatmul, *, platform: str, dtype: Any) -> Choice:
    """Pick an implementation.

    Args:
        wanted: of the config; `auto` lets the hardware decide.
        platform: `cpu`, `gpu` or `tpu`.
        dtype: of activations and of weights in a matmul.

    Raises:
        ConfigError: the wanted one does not run here.
    """
    name = jnp.dtype(dtype).name
    if wanted is not ExpertMatmul.AUTO:
        lacking = _lacking(IMPLEMENTATIONS[wanted], platform, name)
        if lacking:
            able = [k.value for k, i in IMPLEMENTATIONS.items() if not _lacking(i, platform, name)]
            raise ConfigError(
                f"parallel.expert_matmul: {wanted.value} {lacking}; use {', '.join(able)} or auto"
            )
        return Choice(wanted, "set by parallel.expert_matmul")
    for kind in PREFERRED.get(platform, (ExpertMatmul.RAGGED_DOT,)):
        if not _lacking(IMPLEMENTATIONS[kind], platform, name):
            return Choice(kind, REASONS[kind])
    raise AssertionError((platform, name))  # ragged_dot and blocks run everywhere


def _lacking(implementation: Implementation, platform: str, dtype: str) -> str | None:
    if platform not in implementation.platforms:
        return f"runs on {', '.join(sorted(implementation.platforms))} only, and this is {platform}"
    if dtype not in implementation.dtypes:
        return f"computes in {', '.join(sorted(implementation.dtypes))}, not in {dtype}"
    return None
