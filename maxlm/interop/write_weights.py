"""From our parameters to a family's tensors, in files of safetensors, one parameter at a time.

In: a family, a model and a function that reads one of our arrays as a checkpoint holds it; out: the
files. Memory holds the arrays of one rule (three, where a family joins queries, keys and values) and
one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from maxlm.interop.family import Family
from maxlm.interop.safetensors import write_tensors
from maxlm.interop.tensors import Tensor, tensors_of
from maxlm.model.definition import ModelDefinition

SHARD_BYTES = 5_000_000_000  # what transformers writes


def write_weights(
    family: Family,
    model: ModelDefinition,
    read: Callable[[str], np.ndarray],
    folder: str,
    *,
    dtype: np.dtype,
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Write all weights of a model.

    Args:
        family: whose names and layout.
        model: whose parameters.
        read: our name → the array.
        folder: where to.
        dtype: of the files; values are rounded to it.
        shard_bytes: size of a file.

    Returns:
        Names of the files.
    """
    tensors = tensors_of(family, model)
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    arrays = _converted(tensors, read, dtype)
    return write_tensors(folder, shapes, dtype, arrays, shard_bytes=shard_bytes)


def _converted(
    tensors: list[Tensor], read: Callable[[str], np.ndarray], dtype: np.dtype
) -> Iterator[tuple[str, np.ndarray]]:
    held: dict[str, np.ndarray] = {}
    for tensor in tensors:
        wanted = {place.name for place in tensor.places}
        if not wanted <= held.keys():
            held = {name: array for name, array in held.items() if name in wanted}
            held.update({name: read(name) for name in wanted - held.keys()})
        arrays = [held[place.name][place.index] for place in tensor.places]
        yield tensor.name, tensor.transform.to_theirs(arrays, tensor.pieces).astype(dtype)
