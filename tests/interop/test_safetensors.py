"""Our files are the reference library's files, and what is no whole file is refused."""

import json
import struct

import numpy as np
import pytest

from maxlm.errors import CheckpointError
from maxlm.interop.safetensors import TensorFolder, read_header, write_tensors

ARRAYS = {
    "b": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a": np.zeros((0, 2), np.float32),
    "c": np.array(2.5, np.float32),
}


def _write(folder, arrays=None, shard_bytes=10**9):
    arrays = ARRAYS if arrays is None else arrays
    shapes = {name: array.shape for name, array in arrays.items()}
    dtype = np.dtype(next(iter(arrays.values())).dtype)
    return write_tensors(str(folder), shapes, dtype, arrays.items(), shard_bytes=shard_bytes)


def test_the_reference_library_reads_what_we_write(tmp_path):
    library = pytest.importorskip("safetensors.numpy", reason="it comes with transformers")
    assert _write(tmp_path) == ["model.safetensors"]
    read = library.load_file(tmp_path / "model.safetensors")
    assert read.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read[name], array)


def test_we_read_what_the_reference_library_writes(tmp_path):
    library = pytest.importorskip("safetensors.numpy", reason="it comes with transformers")
    arrays = ARRAYS | {"h": np.arange(5, dtype=np.float16), "d": np.arange(3, dtype=np.float64)}
    library.save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
    folder = TensorFolder(str(tmp_path))
    assert folder.entries.keys() == arrays.keys()
    for name, array in arrays.items():
        read = folder.read(name)
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


def test_many_tensors_go_into_files_of_a_size_with_an_index(tmp_path):
    arrays = {f"t{i}": np.full(100, i, np.float32) for i in range(5)}
    files = _write(tmp_path, arrays, shard_bytes=900)
    assert files == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2000
    folder = TensorFolder(str(tmp_path))
    for name, array in arrays.items():
        np.testing.assert_array_equal(folder.read(name), array)


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_file_that_is_cut_short_is_refused(tmp_path, keep):
    _write(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated: .*\d+"):
        TensorFolder(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (struct.pack("<Q", 10**15) + b"x", "its header would have"),
        (struct.pack("<Q", 3) + b"{x}", "its header is JSONDecodeError"),
        (struct.pack("<Q", 2) + b"[]", "its header is"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path, content, message):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"no safetensors file: {message}"):
        TensorFolder(str(tmp_path))


def test_a_header_that_contradicts_itself_is_refused(tmp_path):
    said = {"t": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}
    text = json.dumps(said).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(CheckpointError, match=r"'t' F32\[3\] has 8 bytes instead of 12"):
        read_header(str(path))


def test_quantised_tensors_are_refused_when_read(tmp_path):
    said = {"t": {"dtype": "I8", "shape": [3], "data_offsets": [0, 3]}}
    text = json.dumps(said).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(3))
    with pytest.raises(CheckpointError, match="'t' is I8; weights are read as F64, F32"):
        TensorFolder(str(tmp_path)).read("t")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither model.safetensors nor"):
        TensorFolder(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"it has pytorch_model\.bin: save the model as"):
        TensorFolder(str(tmp_path))
    index = {"weight_map": {"t": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-1\.safetensors: is missing"):
        TensorFolder(str(tmp_path))
    _write(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-1.safetensors")
    with pytest.raises(CheckpointError, match="has no tensor 't'"):
        TensorFolder(str(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no index of safetensors files"):
        TensorFolder(str(tmp_path))
