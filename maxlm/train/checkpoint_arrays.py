"""The adapter to Orbax: arrays to and from a folder, in shards, in the background, committed whole.

In go a flat dict of named arrays and some small files; out comes one committed folder, local or on
gs://. Importing this file imports Orbax (about 0.4 s), so `checkpoints.py` does it late. Errors
leave here as Orbax and TensorStore raise them; `checkpoints.py` gives them their type.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from maxlm import storage

# A replicated array is written by all its replicas together, each a part. Slicing costs a dispatch
# per device and a compilation per shape, so only arrays whose parts have this many bytes are.
_MIN_REPLICA_SLICE_BYTES = 4 << 20
_TIMEOUT_SECONDS = 3600


class ArrayWriter:
    """Writes one folder at a time in the background."""

    def __init__(self) -> None:
        _quiet_orbax()
        self._checkpointer = ocp.AsyncCheckpointer(_Handler(), timeout_secs=_TIMEOUT_SECONDS)

    def start(
        self,
        folder: str,
        arrays: Mapping[str, jax.Array],
        small_files: Callable[[], Mapping[str, bytes]],
    ) -> None:
        """Begin writing; returns when the arrays are safe from being changed or donated.

        `small_files` is called in the background, by the first process only, and gives the content
        of further files by their path in the folder. The folder appears whole or not at all.
        """
        self._checkpointer.save(
            epath.Path(_absolute(folder)), args=_SaveArgs(dict(arrays), small_files)
        )

    def wait(self) -> None:
        """Wait until the folder is committed; raises what went wrong."""
        self._checkpointer.wait_until_finished()

    def close(self) -> None:
        """Release threads; call `wait` first."""
        self._checkpointer.close()


def read_arrays(folder: str, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Read arrays by name onto the devices of their targets' shardings; each process its shards."""
    stored = {name: target for name, target in targets.items() if target.size}
    arrays = {name: _empty(target) for name, target in targets.items() if not target.size}
    arguments = {
        name: ocp.ArrayRestoreArgs(
            restore_type=jax.Array,
            sharding=target.sharding,
            global_shape=target.shape,
            dtype=target.dtype,
        )
        for name, target in stored.items()
    }
    if stored:
        arrays.update(_read(folder, stored, arguments))
    return {name: arrays[name] for name in targets}


def read_on_host(folder: str, name: str) -> np.ndarray:
    """Read one stored array whole into host memory, as it is stored."""
    arguments = {name: ocp.RestoreArgs(restore_type=np.ndarray)}
    return np.asarray(_read(folder, {name: 0}, arguments)[name])


def _empty(target: jax.ShapeDtypeStruct) -> jax.Array:
    # Orbax stores no arrays without elements; nothing but shape and dtype is in them anyway.
    values = np.zeros(target.shape, target.dtype)
    return jax.make_array_from_callback(target.shape, target.sharding, lambda index: values[index])


def _read(folder: str, item: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    # The handler alone, without a Checkpointer around it: that one has barriers, and a process that
    # cannot read its shards would leave the others waiting there.
    return _pytree_handler().restore(
        epath.Path(_absolute(folder)),
        args=ocp.args.PyTreeRestore(
            item=dict(item), restore_args=dict(arguments), partial_restore=True
        ),
    )


def _pytree_handler() -> ocp.PyTreeCheckpointHandler:
    handler = ocp.type_handlers.ArrayHandler(
        min_slice_bytes_for_replica_parallel=_MIN_REPLICA_SLICE_BYTES,
        enable_write_sharding_file=False,
    )
    registry = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, handler), (np.ndarray, ocp.type_handlers.NumpyHandler())
    )
    # Weights hardly compress (7 to 10% in float32), and zstd would take processor time from the
    # step on small machines.
    return ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)


class _Handler(ocp.AsyncCheckpointHandler):
    """Arrays and small files in one folder, so that one commit covers both."""

    def __init__(self) -> None:
        self._arrays = _pytree_handler()

    async def async_save(self, directory: epath.Path, args: _SaveArgs) -> list[Any]:
        commits: list[Any] = []
        if stored := {name: array for name, array in args.arrays.items() if array.size}:
            save_args = ocp.args.PyTreeSave(stored)
            commits += await self._arrays.async_save(directory, args=save_args) or []
        if jax.process_index() == 0:
            # Waits for the folder to be created, which happens in the background too.
            commits.append(
                ocp.future.CommitFutureAwaitingContractedSignals(
                    _write_files(str(directory), args.small_files), name="maxlm_files"
                )
            )
        return commits

    def save(self, directory: epath.Path, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("saves are asynchronous; wait for the writer instead")

    def restore(self, directory: epath.Path, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("read with read_arrays")

    def finalize(self, directory: epath.Path) -> None:
        self._arrays.finalize(directory)


@ocp.args.register_with_handler(_Handler, for_save=True, for_restore=True)
@dataclasses.dataclass
class _SaveArgs(ocp.args.CheckpointArgs):
    arrays: dict[str, jax.Array]
    small_files: Callable[[], Mapping[str, bytes]]


async def _write_files(folder: str, small_files: Callable[[], Mapping[str, bytes]]) -> None:
    for path, content in small_files().items():
        storage.write_bytes(storage.join(folder, *path.split("/")), content)


def _absolute(folder: str) -> str:
    return folder if storage.is_remote(folder) else os.path.abspath(folder)


def _quiet_orbax() -> None:
    """Keep tracebacks of a failed save from being printed: the error is raised, with its type.

    Orbax logs one; asyncio logs one for each array that was being written too; and TensorStore
    prints one for each write that ends when Orbax has closed the loop it was awaited in.
    """
    for name in ("absl", "asyncio"):
        logger = logging.getLogger(name)
        if not any(isinstance(f, _NoOrbaxTraceback) for f in logger.filters):
            logger.addFilter(_NoOrbaxTraceback())
    if not isinstance(sys.unraisablehook, _NoClosedLoop):
        sys.unraisablehook = _NoClosedLoop(sys.unraisablehook)


class _NoOrbaxTraceback(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if not record.exc_info:
            return True
        if record.name == "asyncio" and record.exc_info[2] is None:
            return False  # TensorStore's: nothing in Python has raised it
        frames = traceback.walk_tb(record.exc_info[2])
        files = [record.pathname, *(frame.f_code.co_filename for frame, _ in frames)]
        return not any("orbax" in file for file in files)


class _NoClosedLoop:
    def __init__(self, before: Callable[[Any], Any]):
        self._before = before

    def __call__(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self._before(unraisable)
