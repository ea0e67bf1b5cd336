"""From the tensors of a folder to our parameters, streamed straight into their shards.

In: a family, a model, a folder of safetensors files and where each of our arrays is to lie; out: our
arrays, as a checkpoint holds them. One array is assembled at a time, tensor by tensor, so that beside
the shards of this process memory holds one stacked array and what is on its way into the shards.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Protocol

import jax
import numpy as np

from maxlm.errors import CheckpointError, did_you_mean
from maxlm.interop.family import Family
from maxlm.interop.safetensors import Entry
from maxlm.interop.tensors import Tensor, tensors_of
from maxlm.model.definition import ModelDefinition


class Source(Protocol):
    """Tensors by name: a folder of safetensors, or a file of llama2.c."""

    folder: str
    entries: dict[str, Entry]

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        ...


def read_weights(
    family: Family,
    model: ModelDefinition,
    folder: Source,
    targets: Mapping[str, jax.ShapeDtypeStruct],
) -> dict[str, jax.Array]:
    """Read all weights of a model.

    Args:
        family: whose table to use.
        model: what is to be filled.
        folder: the files.
        targets: our names → shape, dtype and sharding of each array, vocabulary without padding.

    Returns:
        Arrays by our names, each process its shards.

    Raises:
        CheckpointError: a tensor is missing, is not the model's, or has another shape; all are named.
    """
    tensors = tensors_of(family, model)
    names = check_tensors(family, tensors, folder, num_layers=model.config.num_layers)
    by_array: dict[str, list[tuple[Tensor, int]]] = defaultdict(list)
    for tensor in tensors:
        for part, place in enumerate(tensor.places):
            by_array[place.name].append((tensor, part))
    result = {}
    for name, target in targets.items():
        result[name] = _assembled(by_array[name], names, folder, target)
    return result


def check_tensors(
    family: Family, tensors: list[Tensor], folder: Source, *, num_layers: int
) -> dict[str, str]:
    """Hold a folder's tensors against those that a model of so many layers needs.

    Returns:
        The name in the files of each tensor: with the family's prefix, or all without it.

    Raises:
        CheckpointError: naming those that are missing, too many or of another shape.
    """
    entries = folder.entries
    wanted = {tensor.name: tensor.name for tensor in tensors}
    bare = {name: name.removeprefix(family.prefix) for name in wanted}
    if not any(name in entries for name in wanted) and any(n in entries for n in bare.values()):
        wanted = bare
    problems = []
    for tensor in tensors:
        name = wanted[tensor.name]
        if name not in entries:
            problems.append(
                f"'{name}' {list(tensor.shape)} is missing{did_you_mean(name, entries)}"
            )
        elif entries[name].shape != tensor.shape:
            problems.append(
                f"'{name}' has shape {list(entries[name].shape)}, but config.json asks for "
                f"{list(tensor.shape)}"
            )
    known = set(wanted.values())
    unused = [re.compile(p.replace("{num_layers}", str(num_layers))) for p in family.unused]
    for name in entries:
        if name in known or any(pattern.fullmatch(name) for pattern in unused):
            continue
        if name == "lm_head.weight":
            problems += _untied(family, wanted, folder)
            continue
        problems.append(f"'{name}' is not of this model{did_you_mean(name, known)}")
    if problems:
        lines = "\n".join(f"  - {line}" for line in problems[:12])
        more = f"\n  … and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise CheckpointError(
            f"{folder.folder}: its tensors are not those that its config.json describes:\n{lines}{more}"
        )
    return wanted


def _untied(family: Family, wanted: Mapping[str, str], folder: Source) -> list[str]:
    """Whether an output projection beside tied embeddings says something else than they do."""
    table = wanted[family.rules[0].theirs]
    if table not in folder.entries:
        return []
    head, embedding = folder.entries["lm_head.weight"], folder.entries[table]
    if (head.dtype, head.shape) == (embedding.dtype, embedding.shape) and np.array_equal(
        folder.read("lm_head.weight"), folder.read(table)
    ):
        return []
    return [
        f"'lm_head.weight' is not '{table}', but config.json says that the two are one "
        "(tie_word_embeddings): set that to false"
    ]


def _assembled(
    parts: list[tuple[Tensor, int]],
    names: Mapping[str, str],
    folder: Source,
    target: jax.ShapeDtypeStruct,
) -> jax.Array:
    """One of our arrays, on the devices."""
    whole: np.ndarray = np.empty(target.shape, target.dtype)
    for tensor, part in parts:
        # Widened first: an offset is added in the masters' precision.
        theirs = folder.read(names[tensor.name]).astype(target.dtype)
        whole[tensor.places[part].index] = tensor.transform.to_ours(theirs, tensor.pieces)[part]
    assert target.sharding is not None
    return jax.make_array_from_callback(target.shape, target.sharding, lambda index: whole[index])
