"""A child process that saves checkpoint after checkpoint until it is killed.

Run as `python killed_save.py FOLDER ROWS`; prints `saving STEP` when a save has begun. Step N holds
arrays filled with N, so that a torn checkpoint cannot look whole.
"""

import sys

import jax.numpy as jnp

from maxlm.train.checkpoints import Checkpoints


def arrays_of(step: int, rows: int = 256) -> dict:
    return {f"params.{i}": jnp.full((rows, 1024), step + i / 10) for i in range(8)}


def main(folder: str, rows: int) -> None:
    checkpoints = Checkpoints(folder, keep_last=2, message=lambda text: print("said", text))
    begin = (checkpoints.latest or 0) + 1
    for step in range(begin, 100_000):
        checkpoints.save(step, arrays_of(step, rows), {"cursor": step}, files={"note": b"x" * 1000})
        print("saving", step, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
