"""Which of a config's compiler options the compiler of this machine's devices knows.

In go options of XLA; out come those that it refuses, each with its reason. Every platform has options
of its own, and a run that was trained on one is evaluated on another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from maxlm.errors import ConfigError


def refused_options(options: Mapping[str, Any]) -> dict[str, str]:
    """Of the options those that the compiler refuses, and what it says."""
    if not options or _refusal(options) is None:
        return {}
    refusals = {name: _refusal({name: value}) for name, value in options.items()}
    return {name: text for name, text in refusals.items() if text is not None}


def check_compiler_options(options: Mapping[str, Any]) -> None:
    """Raise ConfigError naming the options that the compiler refuses."""
    if refused := refused_options(options):
        lines = "\n  ".join(f"parallel.compiler_options.{n}: {text}" for n, text in refused.items())
        raise ConfigError(
            f"the compiler for {jax.default_backend()} refuses:\n  {lines}\n"
            "leave them out, or take the hardware preset of this machine (configs/hardware)"
        )


def _refusal(options: Mapping[str, Any]) -> str | None:
    program = jax.jit(jnp.negative).lower(jax.ShapeDtypeStruct((), jnp.float32))
    try:
        program.compile(compiler_options=dict(options))
    except jax.errors.JaxRuntimeError as error:
        return str(error).partition("INVALID_ARGUMENT: ")[2] or str(error)
    return None
