"""How experts are computed on which hardware, and why."""

from __future__ import annotations

from typing import Any

from maxlm.config.schema import ExpertExchange, ExpertMatmul
from maxlm.errors import ConfigError
from maxlm.kernels.experts.dispatch import ExpertKernels
from maxlm.kernels.grouped_matmul.choose import choose


def choose_expert_kernels(
    matmul: ExpertMatmul, exchange: ExpertExchange, *, platform: str, dtype: Any
) -> tuple[ExpertKernels, str]:
    """Kernels for a platform, and one line that says which and why.

    Args:
        matmul: of the config.
        exchange: of the config; `auto` stays open on TPU and GPU, where the mesh decides.
        platform: `cpu`, `gpu` or `tpu`.
        dtype: of activations and of weights in a matmul.

    Raises:
        ConfigError: what is forced does not run here.
    """
    chosen = choose(matmul, platform=platform, dtype=dtype)
    why = "set by parallel.expert_exchange"
    if platform == "cpu":
        if exchange is ExpertExchange.ALL_TO_ALL:
            raise ConfigError(
                "parallel.expert_exchange: all_to_all needs the ragged all-to-all, which XLA does "
                "not have on a CPU; use gather or auto"
            )
        if exchange is ExpertExchange.AUTO:
            exchange, why = ExpertExchange.GATHER, "XLA has no ragged all-to-all on a CPU"
    elif exchange is ExpertExchange.AUTO:
        why = "all_to_all where a token visits fewer experts than the axis has devices, else gather"
    line = (
        f"experts: matmul by {chosen.kind.value} ({chosen.reason}), "
        f"exchange by {exchange.value} ({why})"
    )
    return ExpertKernels(chosen.kind, exchange), line
