"""A benchmark's train program: as `maxlm train` would jit it, of a fixed length and learning rate.

In: names of presets, overrides and devices; out: the program. A benchmark trains nothing, so
these two are not derived from a token budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from maxlm.config.load import load_config
from maxlm.plan.compiling.program import TrainProgram, build_program

FIXED = ("train.duration=1000 steps", "optimizer.learning_rate=3e-4")


def build(
    presets: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    devices: list[Any],
    vocab_size: int = 257,
) -> TrainProgram:
    """Resolve a config for `devices` and build its program.

    Args:
        presets: names or paths, later ones win.
        overrides: `key=value`; `data.batch_size` has to be among these or in the presets.
        devices: a mesh is made of all of them.
        vocab_size: of models whose preset leaves it to the tokenizer.

    Raises:
        ConfigError, ParallelError: the config does not fit itself or the devices.
    """
    config = load_config(list(presets), [*FIXED, *overrides])
    return build_program(config, devices, vocab_size=vocab_size)
