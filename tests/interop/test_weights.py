"""Weights in and out: bitwise there and back, and every tensor that does not fit by its name."""

import json

import jax
import numpy as np
import pytest

from maxlm.errors import CheckpointError
from maxlm.interop.folder import read_folder
from maxlm.interop.read_weights import check_tensors
from maxlm.interop.safetensors import TensorFolder, write_tensors
from maxlm.interop.tensors import tensors_of
from maxlm.interop.write_weights import write_weights
from maxlm.model.definition import define
from tests.interop.tiny import TINY, read_arrays, write_folder

FLOAT32 = np.dtype("float32")


@pytest.mark.parametrize("name", TINY)
def test_import_export_import_changes_no_bit(tmp_path, name):
    write_folder(name, tmp_path / "theirs")
    family, config = read_folder(str(tmp_path / "theirs"))
    model = define(config)
    first = read_arrays(family, model, tmp_path / "theirs")
    out = tmp_path / "ours"
    out.mkdir()
    write_weights(family, model, first.__getitem__, str(out), dtype=FLOAT32)
    again = read_arrays(family, model, out)
    assert first.keys() == again.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], again[key], key)
    written, read = TensorFolder(str(out)), TensorFolder(str(tmp_path / "theirs"))
    assert written.entries.keys() == read.entries.keys()
    for key in read.entries:
        if "gemma" in name and "norm" in key:  # 1 + w - 1 rounds w
            np.testing.assert_allclose(written.read(key), read.read(key), atol=2**-23, rtol=0)
        else:
            np.testing.assert_array_equal(written.read(key), read.read(key), key)


def test_experts_and_layers_land_where_they_belong(tmp_path):
    """Every tensor has a number of its own; the stacked arrays must hold it at its layer and expert."""
    for name in ("mixtral", "qwen3_moe", "gemma2"):
        folder = tmp_path / name
        write_folder(name, folder)
        family, config = read_folder(str(folder))
        model = define(config)
        tensors = tensors_of(family, model)
        shapes = {t.name: t.shape for t in tensors}
        numbers = {n: i for i, n in enumerate(shapes)}
        filled = ((n, np.full(s, numbers[n], np.float32)) for n, s in shapes.items())
        for old in folder.glob("model*"):
            old.unlink()
        write_tensors(str(folder), shapes, FLOAT32, filled, shard_bytes=10**9)
        arrays = read_arrays(family, model, folder)
        offset = 1 if name == "gemma2" else 0
        for tensor in tensors:
            for place in tensor.places:
                shift = offset if "norm" in place.name else 0
                assert (arrays[place.name][place.index] == numbers[tensor.name] + shift).all()


def test_names_without_the_prefix_are_read_too(tmp_path):
    write_folder("gpt2", tmp_path / "a")
    family, config = read_folder(str(tmp_path / "a"))
    model = define(config)
    whole = TensorFolder(str(tmp_path / "a"))
    bare = {n.removeprefix("transformer."): whole.read(n) for n in whole.entries}
    bare["h.0.attn.bias"] = np.ones((1, 1, 4, 4), np.float32)  # the mask that old files carry
    _save(tmp_path / "a", tmp_path / "b", bare)
    ours = read_arrays(family, model, tmp_path / "b")
    for key, array in read_arrays(family, model, tmp_path / "a").items():
        np.testing.assert_array_equal(array, ours[key])


def test_half_precision_files_are_read_exactly(tmp_path):
    write_folder("llama3", tmp_path / "a")
    family, config = read_folder(str(tmp_path / "a"))
    model = define(config)
    arrays = read_arrays(family, model, tmp_path / "a")
    out = tmp_path / "b"
    out.mkdir()
    half = np.dtype(jax.numpy.bfloat16)
    write_weights(family, model, arrays.__getitem__, str(out), dtype=half, shard_bytes=50_000)
    assert len(list(out.glob("model-*.safetensors"))) > 1
    for key, array in read_arrays(family, model, out).items():
        np.testing.assert_array_equal(array, arrays[key].astype(half).astype(np.float32))


def check(family, config, folder):
    """Hold a folder's tensors against a model's."""
    tensors = tensors_of(family, define(config))
    check_tensors(family, tensors, TensorFolder(str(folder)), num_layers=config.num_layers)


def test_the_layer_of_deepseek_v3_that_predicts_further_is_passed_over_and_no_other(tmp_path):
    write_folder("deepseek_v3", tmp_path / "a")
    family, config = read_folder(str(tmp_path / "a"))
    whole = TensorFolder(str(tmp_path / "a"))
    tensors = {name: whole.read(name) for name in whole.entries}
    beyond = f"model.layers.{config.num_layers}."
    first = {n: t for n, t in tensors.items() if n.startswith("model.layers.0.")}
    tensors |= {n.replace("model.layers.0.", beyond): t for n, t in first.items()}
    tensors[f"{beyond}eh_proj.weight"] = np.ones((48, 96), np.float32)
    _save(tmp_path / "a", tmp_path / "b", tensors)
    check(family, config, tmp_path / "b")
    tensors[f"model.layers.{config.num_layers + 1}.eh_proj.weight"] = np.ones(3, np.float32)
    _save(tmp_path / "a", tmp_path / "c", tensors)
    with pytest.raises(CheckpointError, match=r"eh_proj.weight' is not of this model"):
        check(family, config, tmp_path / "c")


def test_missing_extra_and_misshapen_tensors_are_all_named(tmp_path):
    write_folder("llama3", tmp_path / "a")
    family, config = read_folder(str(tmp_path / "a"))
    whole = TensorFolder(str(tmp_path / "a"))
    tensors = {name: whole.read(name) for name in whole.entries}
    tensors["model.layers.0.self_attn.q_prok.weight"] = tensors.pop(
        "model.layers.0.self_attn.q_proj.weight"
    )
    tensors["model.norm.weight"] = np.ones(50, np.float32)
    _save(tmp_path / "a", tmp_path / "b", tensors)
    with pytest.raises(CheckpointError) as caught:
        check(family, config, tmp_path / "b")
    message = str(caught.value)
    missing = "'model.layers.0.self_attn.q_proj.weight' [48, 48] is missing (did you mean"
    assert missing in message
    assert "'model.layers.0.self_attn.q_prok.weight' is not of this model (did you mean" in message
    assert "'model.norm.weight' has shape [50], but config.json asks for [48]" in message


def test_an_output_projection_beside_tied_embeddings_must_equal_them(tmp_path):
    write_folder("smollm", tmp_path / "a")
    family, config = read_folder(str(tmp_path / "a"))
    model = define(config)
    whole = TensorFolder(str(tmp_path / "a"))
    tensors = {name: whole.read(name) for name in whole.entries}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    _save(tmp_path / "a", tmp_path / "same", tensors)
    read_arrays(family, model, tmp_path / "same")
    tensors["lm_head.weight"] = tensors["lm_head.weight"] * 2
    _save(tmp_path / "a", tmp_path / "other", tensors)
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        read_arrays(family, model, tmp_path / "other")


def test_arrays_land_in_the_shards_that_are_asked_for(tmp_path):
    """Each device gets its part alone, and together they are the array."""
    from maxlm.interop.read_weights import read_weights
    from maxlm.interop.tensors import canonical_shapes

    write_folder("llama3", tmp_path)
    family, config = read_folder(str(tmp_path))
    model = define(config)
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    targets = {}
    for name, shape in canonical_shapes(model).items():
        info = model.parameters[name]
        axes = [{"embed": "fsdp", "mlp": "tensor", "heads": "tensor"}.get(a) for a in info.axes]
        place = jax.NamedSharding(mesh, jax.P(*axes))
        targets[name] = jax.ShapeDtypeStruct(shape, FLOAT32, sharding=place)
    arrays = read_weights(family, model, TensorFolder(str(tmp_path)), targets)
    whole = read_arrays(family, model, tmp_path)
    for name, array in arrays.items():
        assert array.sharding == targets[name].sharding
        np.testing.assert_array_equal(np.asarray(array), whole[name])


def _save(source, folder, tensors):
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps(json.loads((source / "config.json").read_text()))
    )
    shapes = {name: array.shape for name, array in tensors.items()}
    write_tensors(str(folder), shapes, FLOAT32, tensors.items(), shard_bytes=10**9)
