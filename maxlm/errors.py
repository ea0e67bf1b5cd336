"""Typed errors: what was wrong, where, the values seen, and what to do.

Everything that a user can cause is a `MaxLMError`; the command line prints its message without a
traceback and exits with its `exit_code` (2: the user's to mend, 1: ours, 75: run it again).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MaxLMError(Exception):
    """Root of every error that maxlm raises on purpose."""

    exit_code = 2


class ConfigError(MaxLMError):
    """A config file, key or value that cannot be used."""


class DataError(MaxLMError):
    """A source, document or token store that cannot be read or is damaged."""


class TokenizerError(MaxLMError):
    """A tokenizer that cannot be loaded, trained or matched to its data."""


class CheckpointError(MaxLMError):
    """A checkpoint that is missing, half-written, damaged or of another run."""


class DivergedError(MaxLMError):
    """Training in which nothing is learned any more: no step has finite gradients."""

    def __init__(self, message: str, *, weights_are_finite: bool):
        super().__init__(message)
        self.weights_are_finite = weights_are_finite


class ParallelError(MaxLMError):
    """A mesh, process group or batch that does not fit the devices."""


class CompileError(MaxLMError):
    """A compiler that failed or ended without a result, through no fault of the config."""

    exit_code = 1


class PlanError(MaxLMError):
    """A compiled program that the planner cannot read, or a kernel that it cannot schedule."""

    exit_code = 1


class DeviceMemoryError(MaxLMError):
    """A program that needs more memory than the device has."""


class StorageError(MaxLMError):
    """A path that cannot be read or written: missing, forbidden, or the disk is full."""


class MissingError(StorageError):
    """A path at which there is nothing."""


class UnreachableError(StorageError):
    """Storage that fails for now: a time-out, a lost connection, a server or disk in trouble.

    It says nothing about what is stored. A launcher may run the command again.
    """

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the nearest of `known`, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""
