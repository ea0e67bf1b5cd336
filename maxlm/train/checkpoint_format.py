"""What a checkpoint folder holds, which folders are complete, and how older formats are read.

    CHECKPOINTS/STEP/maxlm.json           the description: step, metadata, every array's shape, dtype
                                          and checksum, every file's hash; carries its own hash
    CHECKPOINTS/STEP/files/…              small files saved beside the arrays (the tokenizer)
    CHECKPOINTS/STEP/commit_success.txt   Orbax's commit marker: without it a folder is half-written
    CHECKPOINTS/STEP/…                    Orbax's array store (OCDBT)

A step that is saved again while a complete checkpoint of it exists goes to STEP.1, STEP.2, …: the
highest complete one counts, and the one before is removed only after it is complete. Nothing here
imports jax or Orbax.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from maxlm import storage
from maxlm.errors import CheckpointError, MissingError

FORMAT_VERSION = 1
DESCRIPTION_FILE = "maxlm.json"
FILES_FOLDER = "files"
COMMIT_FILE = "commit_success.txt"

# From a body of version N to one of version N + 1. When FORMAT_VERSION rises, the step from the
# version before goes here, and checkpoints written by every earlier release stay readable.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}

_STEP_NAME = re.compile(r"(\d+)(?:\.(\d+))?")
_TEMPORARY_MARK = ".orbax-checkpoint-tmp"


class DamagedError(CheckpointError):
    """A checkpoint whose content is not what was saved; `problems` says what, one line each."""

    def __init__(self, folder: str, problems: list[str]):
        self.folder = folder
        self.problems = problems
        super().__init__(f"{folder}: damaged checkpoint:\n" + indent(problems))


@dataclass(frozen=True)
class ArrayRecord:
    """One saved array: its shape, dtype name and layout-independent checksum."""

    shape: tuple[int, ...]
    dtype: str
    checksum: str
    itemsize: int

    @property
    def elements(self) -> int:
        """Number of its values."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of its values."""
        return self.elements * self.itemsize


@dataclass(frozen=True)
class FileRecord:
    """One small file saved beside the arrays."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Description:
    """Everything that a checkpoint says of itself."""

    step: int
    metadata: dict[str, Any]
    arrays: dict[str, ArrayRecord]
    files: dict[str, FileRecord] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    saved_at: float = field(default_factory=time.time)  # unix seconds

    @property
    def bytes(self) -> int:
        """Bytes of all arrays and files."""
        arrays = sum(record.bytes for record in self.arrays.values())
        return arrays + sum(record.bytes for record in self.files.values())


@dataclass(frozen=True)
class Listing:
    """The content of a checkpoints folder, sorted out."""

    complete: dict[int, str]  # step -> folder name, ascending
    superseded: list[str]  # complete, but a later writing of the same step is complete too
    half_written: list[str]  # left by a save that was killed


def scan(root: str) -> Listing:
    """Sort the names in a checkpoints folder (local or gs://) into complete and half-written."""
    complete: dict[int, tuple[int, str]] = {}
    superseded, half_written = [], []
    for name in storage.list_names(root):
        match = _STEP_NAME.fullmatch(name)
        committed = match and is_committed(storage.join(root, name))
        if _TEMPORARY_MARK in name or (match and not committed):
            half_written.append(name)
        elif match:
            step, attempt = int(match[1]), int(match[2] or 0)
            older = complete.get(step)
            if older and older[0] > attempt:
                superseded.append(name)
                continue
            if older:
                superseded.append(older[1])
            complete[step] = (attempt, name)
    return Listing({step: complete[step][1] for step in sorted(complete)}, superseded, half_written)


def is_committed(path: str) -> bool:
    """Whether a checkpoint's folder is whole: its commit marker is written last."""
    return storage.exists(storage.join(path, COMMIT_FILE))


def attempt_of(name: str) -> int:
    """Which writing of its step a folder holds: 0 for `100`, 2 for `100.2`."""
    match = _STEP_NAME.fullmatch(name)
    return int(match[2] or 0) if match else 0


def folder_name(step: int, attempt: int) -> str:
    """The folder's name for the writing `attempt` of `step`: `100`, then `100.1`, `100.2`."""
    return f"{step}.{attempt}" if attempt else str(step)


def encode(description: Description) -> bytes:
    """The description as the bytes of `maxlm.json`. Raises CheckpointError on non-JSON metadata."""
    body = {
        "format_version": description.format_version,
        "step": description.step,
        "saved_at": description.saved_at,
        "metadata": description.metadata,
        "arrays": {
            name: {
                "shape": list(record.shape),
                "dtype": record.dtype,
                "itemsize": record.itemsize,
                "checksum": record.checksum,
            }
            for name, record in description.arrays.items()
        },
        "files": {
            name: {"bytes": record.bytes, "sha256": record.sha256}
            for name, record in description.files.items()
        },
    }
    return json.dumps({"sha256": _digest(body), "body": body}, indent=1).encode()


def check_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy of `metadata`, which must be JSON. Raises CheckpointError."""
    try:
        return json.loads(json.dumps(metadata))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint metadata must be plain JSON: {error}") from error


def read_description(folder: str) -> Description:
    """Read what a complete checkpoint says of itself.

    Raises:
        DamagedError: the file is missing, is not JSON, or its hash does not match.
        CheckpointError: written by a newer maxlm.
        StorageError: it cannot be read, which says nothing about what is in it.
    """
    path = storage.join(folder, DESCRIPTION_FILE)
    try:
        outer = json.loads(storage.retried(lambda: storage.read_bytes(path)))
        body, digest = outer["body"], outer["sha256"]
    except MissingError as error:
        raise DamagedError(folder, [str(error)]) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(folder, [f"{DESCRIPTION_FILE} is not readable: {error!r}"]) from error
    if _digest(body) != digest:
        raise DamagedError(folder, [f"{DESCRIPTION_FILE} does not match its own hash"])
    return _decode(folder, body)


def read_files(folder: str, description: Description) -> dict[str, bytes]:
    """The small files of a checkpoint, checked against their hashes. Raises DamagedError."""
    files = {}
    for name, record in description.files.items():
        path = storage.join(folder, FILES_FOLDER, *name.split("/"))
        try:
            content = storage.retried(partial(storage.read_bytes, path))
        except MissingError as error:
            raise DamagedError(folder, [f"file '{name}': {error}"]) from error
        if hashlib.sha256(content).hexdigest() != record.sha256:
            raise DamagedError(folder, [f"file '{name}' does not match its hash"])
        files[name] = content
    return files


def indent(lines: list[str], limit: int = 12) -> str:
    """Problems as indented lines, at most `limit` of them."""
    shown = [f"  - {line}" for line in lines[:limit]]
    if len(lines) > limit:
        shown.append(f"  … and {len(lines) - limit} more")
    return "\n".join(shown)


def _decode(folder: str, body: dict[str, Any]) -> Description:
    version = body["format_version"]
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{folder}: checkpoint format {version}, but this maxlm reads formats up to "
            f"{FORMAT_VERSION}; upgrade maxlm to read it"
        )
    while version < FORMAT_VERSION:
        body = UPGRADES[version](body)
        version += 1
    return Description(
        step=body["step"],
        metadata=body["metadata"],
        arrays={
            name: ArrayRecord(
                tuple(record["shape"]), record["dtype"], record["checksum"], record["itemsize"]
            )
            for name, record in body["arrays"].items()
        },
        files={
            name: FileRecord(record["bytes"], record["sha256"])
            for name, record in body["files"].items()
        },
        format_version=body["format_version"],
        saved_at=body["saved_at"],
    )


def _digest(body: Any) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
