"""What the backward pass of a block finds kept, fetches from the host's memory, or computes again.

In: a policy's name and a function that runs blocks; out: that function under `jax.checkpoint`. A
policy chooses among the activations that the modules name with `checkpoint_name`; whatever has no
name of the policy's is computed again. docs/memory.md says what each policy costs, as measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from maxlm.config.choices import Rematerialization
from maxlm.errors import ParallelError

# With these the backward pass needs neither the projections of queries, keys and values nor the
# forward of an attention kernel, whose residuals the last two are.
ATTENTION_NAMES = ("query", "key", "value", "attention_out", "attention_lse")
# With these no matmul of a block runs twice, and no row goes to its experts twice. The MLP's projection
# is kept only where a norm follows it, and of experts, whose scores' gradient needs it.
MATMUL_NAMES = (
    "attention_projected",
    "router_logits",
    "expert_rows",
    "mlp_gate",
    "mlp_up",
    "mlp_projected",
)
BLOCK_INPUT = "block_input"

_KEPT: dict[Rematerialization, tuple[str, ...]] = {
    Rematerialization.MATMULS: (BLOCK_INPUT, *ATTENTION_NAMES, *MATMUL_NAMES),
    Rematerialization.ATTENTION: (BLOCK_INPUT, *ATTENTION_NAMES),
    Rematerialization.FULL: (BLOCK_INPUT,),
}
_OFFLOADED: dict[Rematerialization, tuple[str, ...]] = {
    Rematerialization.OFFLOAD_ATTENTION: _KEPT[Rematerialization.ATTENTION],
    Rematerialization.OFFLOAD_INPUTS: _KEPT[Rematerialization.FULL],
}
HOST_MEMORY = "pinned_host"


def rematerialized(run: Callable[..., Any], choice: Rematerialization) -> Callable[..., Any]:
    """`run`, whose backward pass keeps what `choice` says; `run` itself where that is everything.

    It is meant for the body of a scan, where no common subexpression can be merged: without the
    scan (or in one that is unrolled) XLA may undo it.
    """
    if choice is Rematerialization.NONE:
        return run
    return jax.checkpoint(run, policy=_policy(choice), prevent_cse=False)


def kept_of_tick(choice: Rematerialization) -> Callable[..., Any]:
    """What is kept of a tick of a pipeline whose stages hold several pieces.

    Even where everything is kept there is a policy, because without one a copy of the piece's
    parameters would be kept of every tick.
    """
    if choice is not Rematerialization.NONE:
        return _policy(choice)
    policies = jax.checkpoint_policies
    names = (BLOCK_INPUT, *ATTENTION_NAMES, *MATMUL_NAMES)
    return policies.save_from_both_policies(
        policies.dots_saveable, policies.save_only_these_names(*names)
    )


def _policy(choice: Rematerialization) -> Callable[..., Any]:
    policies = jax.checkpoint_policies
    if choice in _OFFLOADED:
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=list(_OFFLOADED[choice]),
            offload_src="device",
            offload_dst=HOST_MEMORY,
        )
    return policies.save_only_these_names(*_KEPT[choice])


def check_offload(choice: Rematerialization, mesh: Mesh) -> None:
    """Raise ParallelError when a policy needs host memory that the mesh's devices cannot reach.

    A CPU takes every policy: its memory is the host's, so the compiler drops the copies.
    """
    if choice not in _OFFLOADED:
        return
    device = mesh.devices.flat[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST_MEMORY not in kinds:
        raise ParallelError(
            f"parallel.rematerialization: {choice.value} moves activations to memory of kind "
            f"{HOST_MEMORY}, but {device.device_kind} reaches only {', '.join(kinds)}; choose "
            f"{Rematerialization.FULL.value}, which keeps least on the device"
        )
