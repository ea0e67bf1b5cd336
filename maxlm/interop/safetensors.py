"""Files of the safetensors format, read and written tensor by tensor, local or remote.

The format (https://github.com/huggingface/safetensors): 8 bytes with the length of a JSON header,
the header (name → dtype, shape, begin and end of its bytes), the bytes, little-endian and row-major.
A tensor is read by its range of bytes and not through a memory map, so that no page of a file counts
as this process's memory and a bucket works like a disk.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from maxlm import storage
from maxlm.errors import CheckpointError, StorageError, did_you_mean

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("float64"),
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# A header of more is no header: the reference implementation refuses it too.
_MAX_HEADER_BYTES = 100_000_000
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies.

    Attributes:
        path: of the file.
        dtype: by the format's name, such as `BF16`.
        shape: of the tensor.
        start: of its bytes in the file.
        bytes: how many.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    bytes: int


class TensorFolder:
    """The tensors of a folder: of `model.safetensors`, or of the files that the index names.

    Raises:
        CheckpointError: there are no weights, a file is missing, cut short or no safetensors file,
            or the index names a tensor that its file does not have.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        index = storage.join(folder, INDEX)
        if storage.exists(index):
            self._read_index(index)
        elif storage.exists(single := storage.join(folder, SINGLE)):
            self.entries = read_header(single)
        else:
            names = storage.list_names(folder)
            found = [
                n for n in names if n.endswith((".safetensors", ".bin", ".pt", ".pth", ".gguf"))
            ]
            listing = f"; it has {', '.join(found[:5])}" if found else ""
            if any(name.endswith(".safetensors") for name in found):
                raise CheckpointError(
                    f"{folder}: {INDEX} is missing, which says what its files hold{listing}: copy it too"
                )
            raise CheckpointError(
                f"{folder}: neither {SINGLE} nor {INDEX} is in this folder{listing}: save the model "
                "as safetensors (transformers: model.save_pretrained(FOLDER))"
            )

    def read(self, name: str) -> np.ndarray:
        """A tensor, in the file's dtype. Raises CheckpointError for a dtype that is no weight's."""
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            raise CheckpointError(
                f"{entry.path}: tensor '{name}' is {entry.dtype}; weights are read as "
                f"{', '.join(DTYPES)}: convert a quantised model back first"
            )
        stop = entry.start + entry.bytes
        content = storage.retried(lambda: storage.read_range(entry.path, entry.start, stop))
        return np.frombuffer(content, DTYPES[entry.dtype]).reshape(entry.shape)

    def _read_index(self, path: str) -> None:
        try:
            places: Mapping[str, str] = json.loads(storage.read_bytes(path))["weight_map"]
            files = sorted(set(places.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: no index of safetensors files: {error!r}") from error
        headers = {}
        for file in files:
            full = storage.join(self.folder, file)
            if not storage.exists(full):
                raise CheckpointError(f"{full}: is missing; {INDEX} names it: copy it too")
            headers[file] = read_header(full)
        for name, file in places.items():
            if name not in headers[file]:
                near = did_you_mean(name, headers[file])
                raise CheckpointError(
                    f"{storage.join(self.folder, file)}: has no tensor '{name}', which {INDEX} says "
                    f"it has{near}: the files are not of one model"
                )
            self.entries[name] = headers[file][name]


def read_header(path: str) -> dict[str, Entry]:
    """The tensors of one file. Raises CheckpointError when it is cut short or no safetensors file."""
    size = storage.size(path)
    if size < 8:
        raise CheckpointError(f"{path}: truncated: {size} bytes, and 8 begin a safetensors file")
    (length,) = struct.unpack("<Q", storage.read_range(path, 0, 8))
    if length > _MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path}: no safetensors file: its header would have {length:,} bytes"
        )
    if 8 + length > size:
        raise CheckpointError(
            f"{path}: truncated: its header ends at byte {8 + length:,}, the file has {size:,}: "
            "copy it again"
        )
    try:
        header = json.loads(storage.read_range(path, 8, 8 + length))
        header.pop("__metadata__", None)
        entries = {
            name: Entry(
                path,
                str(said["dtype"]),
                tuple(int(dim) for dim in said["shape"]),
                8 + length + int(said["data_offsets"][0]),
                int(said["data_offsets"][1]) - int(said["data_offsets"][0]),
            )
            for name, said in header.items()
        }
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{path}: no safetensors file: its header is {error!r}") from error
    end = max((entry.start + entry.bytes for entry in entries.values()), default=0)
    if end > size:
        raise CheckpointError(
            f"{path}: truncated: its tensors end at byte {end:,}, the file has {size:,}: copy it again"
        )
    for name, entry in entries.items():
        if entry.dtype in DTYPES:
            wanted = math.prod(entry.shape) * DTYPES[entry.dtype].itemsize
            if entry.bytes != wanted:
                raise CheckpointError(
                    f"{path}: tensor '{name}' {entry.dtype}{list(entry.shape)} has {entry.bytes:,} "
                    f"bytes instead of {wanted:,}"
                )
    return entries


def write_tensors(
    folder: str,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
    arrays: Iterable[tuple[str, np.ndarray]],
    *,
    shard_bytes: int,
) -> list[str]:
    """Write tensors into files of at most `shard_bytes` each (a larger tensor gets its own).

    Args:
        folder: where to.
        shapes: of all tensors, in the order in which `arrays` gives them.
        dtype: of all of them.
        arrays: names and values, one at a time; only one is held.
        shard_bytes: how large a file becomes.

    Returns:
        Names of the files; with several there is an index too, written last.
    """
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    used = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        if used and used + size > shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = shape
        used += size
    count = len(shards)
    files = [SINGLE] if count == 1 else [_shard_name(i + 1, count) for i in range(count)]
    given = iter(arrays)
    for file, shard in zip(files, shards, strict=True):
        _write_file(storage.join(folder, file), shard, dtype, given)
    if count > 1:
        places = {name: f for f, shard in zip(files, shards, strict=True) for name in shard}
        total = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": places}
        storage.write_text(storage.join(folder, INDEX), json.dumps(index, indent=2) + "\n")
    return files


def _write_file(
    path: str,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
    arrays: Iterator[tuple[str, np.ndarray]],
) -> None:
    # transformers asks what wrote the file; "pt" is what it takes without question.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shapes.items():
        stop = start + math.prod(shape) * dtype.itemsize
        offsets = [start, stop]
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": offsets}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the bytes of tensors begin at a multiple of 8
    with storage.typed_errors(path), storage.open_file(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for wanted, shape in shapes.items():
            name, array = next(arrays)
            if name != wanted or array.shape != shape or array.dtype != dtype:
                raise StorageError(
                    f"{path}: {name} {array.shape} came in place of {wanted} {shape}"
                )
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _shard_name(number: int, count: int) -> str:
    return f"model-{number:05d}-of-{count:05d}.safetensors"
