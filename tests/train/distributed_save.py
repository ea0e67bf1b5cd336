"""One of two processes with four devices each: save, damage one process's data, fall back together.

Run as `python distributed_save.py PROCESS PORT FOLDER`.
"""

import sys
import warnings
from typing import Any

import jax
import pytest


def unreadable(folder: str) -> Any:
    """A `read_description` that finds one checkpoint damaged."""
    from maxlm.train.checkpoint_format import DamagedError, read_description

    def read(path: str) -> Any:
        if path == folder:
            raise DamagedError(path, ["not readable here"])
        return read_description(path)

    return read


def main(process: int, port: int, folder: str) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
    from checkpoint_state import assert_same, host_state, make_mesh, place, targets
    from jax.experimental import multihost_utils

    from maxlm.train import checkpoint_format
    from maxlm.train.checkpoints import Checkpoints

    assert jax.process_count() == 2 and jax.device_count() == 8
    mesh = make_mesh(4, 2)
    checkpoints = Checkpoints(folder, keep_last=2)
    for step in (1, 2, 3):
        checkpoints.save(step, place(host_state(step), mesh), {"cursor": step}, files={"a": b"b"})
    checkpoints.save(3, place(host_state(3), mesh), {"cursor": 3})  # the same again: skipped
    checkpoints.wait()
    assert checkpoints.steps() == [2, 3], checkpoints.steps()
    arrays, _, step = checkpoints.restore(None, targets(mesh))
    assert step == 3
    local = {n: a for n, a in arrays.items() if a.is_fully_replicated}
    assert_same(local, {n: host_state(3)[n] for n in local})

    with pytest.MonkeyPatch.context() as patch:
        if process == 1:  # its machine's view of a shared folder lags behind, say
            patch.setattr(checkpoint_format, "read_description", unreadable(checkpoints.path(3)))
        _, metadata, step = checkpoints.restore(None, targets(mesh))
    assert step == metadata["cursor"] == 2

    multihost_utils.sync_global_devices("before the damage")
    if process == 0:
        from test_checkpoint_damage import truncate_second_process

        truncate_second_process(checkpoints.path(3))
    multihost_utils.sync_global_devices("after the damage")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        arrays, _, step = checkpoints.restore(None, targets(mesh))
    assert step == 2 and any("continuing from step 2" in str(w.message) for w in caught)
    checkpoints.save(4, place(host_state(4), mesh), {"cursor": 4})
    checkpoints.close()
    print("done", process, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
