"""What is checked around a checkpoint: before a save, before and after a read, and on demand.

In come arrays, targets, descriptions and exceptions; out come typed errors that name the array, the
values seen and what to do, and the `Report` of `maxlm checkpoints verify`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from maxlm import storage
from maxlm.errors import (
    CheckpointError,
    DeviceMemoryError,
    MissingError,
    StorageError,
    UnreachableError,
    did_you_mean,
)
from maxlm.train.checkpoint_format import (
    ArrayRecord,
    DamagedError,
    Description,
    FileRecord,
    indent,
    read_description,
    read_files,
)
from maxlm.train.checksum import checksum_on_host, checksums

# Below this the host's checksum is quicker than compiling a program for the array's shape.
_COMPILE_FROM_BYTES = 64 << 20


@dataclass(frozen=True)
class Report:
    """What `verify` found: no problems means that every stored value is the one saved."""

    path: str
    problems: list[str]
    arrays: int
    bytes: int
    seconds: float

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(path: str) -> Report:
    """Recompute the checksum of every array and file of a checkpoint, one at a time on the host."""
    from maxlm.train.checkpoint_arrays import read_on_host

    started = time.time()
    try:
        description = read_description(path)
    except DamagedError as error:
        return Report(path, error.problems, 0, 0, time.time() - started)
    problems = []
    for name, record in description.arrays.items():
        if 0 in record.shape:
            continue
        try:
            array = storage.retried(partial(read_on_host, path, name))
        except Exception as error:
            problems.append(f"array '{name}' {read_problem(path, error)}")
            continue
        if (array.shape, str(array.dtype)) != (record.shape, record.dtype):
            problems.append(
                f"array '{name}' is stored as {array.dtype}{list(array.shape)} instead of "
                f"{record.dtype}{list(record.shape)}"
            )
        elif (found := _checksum(array)) != record.checksum:
            problems.append(
                f"array '{name}': its checksum is {found} instead of {record.checksum}: "
                "the stored values have changed"
            )
    try:
        read_files(path, description)
    except DamagedError as error:
        problems += error.problems
    seconds = time.time() - started
    return Report(path, problems, len(description.arrays), description.bytes, seconds)


def checked_folder(folder: str) -> str:
    """Refuse storage that checkpoints cannot be written to; a local path becomes absolute."""
    if storage.is_remote(folder):
        if folder.startswith("gs://"):
            return folder.rstrip("/")
        kind = folder.split("://")[0]
        raise CheckpointError(
            f"{folder}: checkpoints are written to local folders and gs://, not to {kind}://; "
            "write them locally and copy them, or mount the bucket as a folder"
        )
    return os.path.abspath(folder.removeprefix("file://"))


def check_arrays(arrays: Mapping[str, Any]) -> None:
    """Refuse what cannot be saved. Raises CheckpointError naming the array."""
    for name, array in arrays.items():
        if not isinstance(array, jax.Array):
            raise CheckpointError(
                f"array '{name}' is a {type(array).__name__}, not a jax.Array; "
                "put it on the devices with jax.device_put first"
            )
        if array.is_deleted():
            raise CheckpointError(
                f"array '{name}' was donated to another computation before it was saved"
            )
        if jax.process_count() > 1 and array.is_fully_addressable:
            raise CheckpointError(
                f"array '{name}' lives on one process's devices only ({array.sharding}); "
                "with several processes give it a sharding over the whole mesh"
            )


def check_targets(
    path: str,
    description: Description,
    targets: Mapping[str, jax.ShapeDtypeStruct],
    partial: bool,
) -> None:
    """Compare what is asked for with what is stored. Raises CheckpointError naming each array."""
    stored = description.arrays
    problems = []
    for name, target in targets.items():
        if name not in stored:
            problems.append(f"'{name}' is not in the checkpoint{did_you_mean(name, stored)}")
            continue
        record = stored[name]
        if tuple(target.shape) != record.shape:
            problems.append(
                f"'{name}' is stored with shape {list(record.shape)}, but the model has "
                f"{list(target.shape)}"
            )
        elif str(target.dtype) != record.dtype:
            problems.append(
                f"'{name}' is stored as {record.dtype}, but the model has {target.dtype}; "
                "nothing is cast on the way"
            )
    if not partial:
        problems += [
            f"'{name}' is in the checkpoint, but not in the model{did_you_mean(name, targets)}"
            for name in stored
            if name not in targets
        ]
    if problems:
        raise CheckpointError(
            f"{path}: the checkpoint is of another model or optimizer:\n"
            + indent(problems)
            + "\nuse the config that it was saved with (it is in the checkpoint: "
            "`maxlm checkpoints show`), or start a new run"
        )


def placed(target: Any) -> jax.ShapeDtypeStruct:
    """A target with a sharding: its own, or this process's first device."""
    sharding = getattr(target, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(target.shape, target.dtype, sharding=sharding)


def agree(path: str, problems: list[str]) -> None:
    """Raise DamagedError on every process when any process has problems."""
    troubled = bool(problems)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        flags = np.asarray(multihost_utils.process_allgather(np.int32(troubled))).reshape(-1)
        if flags.any() and not problems:
            problems = [f"process {int(flags.argmax())} could not use it (see its log)"]
    if problems:
        raise DamagedError(path, problems)


def from_first_process(numbers: Sequence[int]) -> list[int]:
    """The numbers that the first process has (at most 1024, none negative but -1 alone)."""
    if jax.process_count() == 1:
        return list(numbers)
    from jax.experimental import multihost_utils

    sent = np.full(1025, -1, np.int32)
    sent[0] = min(len(numbers), 1024)
    sent[1 : 1 + sent[0]] = numbers[:1024]
    received = np.asarray(multihost_utils.broadcast_one_to_all(sent))
    return received[1 : 1 + received[0]].tolist()


def read_problem(path: str, error: Exception) -> str:
    """One line for a failed read. Raises when the failure says nothing about the checkpoint."""
    text = brief(error)
    if "RESOURCE_EXHAUSTED" in text or isinstance(error, MemoryError):
        raise DeviceMemoryError(
            f"{path}: no memory left while reading: {text}; use more devices, or shard further"
        ) from error
    # Older checkpoints would fail alike, and falling back would throw good work away.
    if storage.is_transient(error):
        raise UnreachableError(f"{path}: cannot be reached: {text}") from error
    if not _is_of_content(error, text):
        raise CheckpointError(f"{path}: cannot be reached: {text}") from error
    return f"cannot be read: {text}"


def _is_of_content(error: Exception, text: str) -> bool:
    """Whether a failed read is due to what is stored: a missing or an undecodable file.

    TensorStore raises ValueError for every status; some of them are not about the content.
    """
    known = (FileNotFoundError, MissingError, ValueError, KeyError, TypeError, EOFError)
    others = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CANCELLED", "INTERNAL", "UNKNOWN")
    root: BaseException = error  # Orbax wraps what it met
    while root.__cause__ is not None:
        root = root.__cause__
    return isinstance(root, known) and not any(mark in f"{text} {root}" for mark in others)


def is_disk_full(error: BaseException) -> bool:
    """Whether a failed write, wherever it was wrapped, means that there is no room."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        text = str(seen)
        if isinstance(seen, StorageError) and "the disk is full" in text:
            return True
        if any(m in text for m in ("No space left", "Disk quota exceeded", "File too large")):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def brief(error: BaseException) -> str:
    """An exception in one line of bearable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, StorageError | CheckpointError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= 400 else text[:400] + " …"


def array_records(shapes: Mapping[str, Any], sums: Mapping[str, str]) -> dict[str, ArrayRecord]:
    """The description's table of arrays."""
    return {
        name: ArrayRecord(tuple(a.shape), str(a.dtype), sums[name], np.dtype(a.dtype).itemsize)
        for name, a in shapes.items()
    }


def file_records(files: Mapping[str, bytes]) -> dict[str, FileRecord]:
    """The description's table of small files."""
    return {
        name: FileRecord(len(content), hashlib.sha256(content).hexdigest())
        for name, content in files.items()
    }


def full_metadata(description: Description) -> dict[str, Any]:
    """The user's metadata with the step and format that the folder has."""
    known = {"step": description.step, "format_version": description.format_version}
    return {**description.metadata, **known}


def _checksum(array: np.ndarray) -> str:
    narrowed = jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype
    if array.nbytes < _COMPILE_FROM_BYTES or narrowed:
        return checksum_on_host(array)
    return checksums({"array": jax.device_put(array)})["array"]
