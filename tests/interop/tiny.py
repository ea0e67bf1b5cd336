"""The tiny models of every family, read by maxlm, and what the tests ask of them."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np

from maxlm.batch import Batch
from maxlm.interop.folder import read_folder
from maxlm.interop.read_weights import read_weights
from maxlm.interop.safetensors import TensorFolder
from maxlm.interop.tensors import canonical_shapes
from maxlm.model.decoder import padded_vocab
from maxlm.model.definition import ModelDefinition, Params, define

sys.path[:0] = [str(Path(__file__).parents[2] / "tools")]

from tiny_families import LENGTH, TINY, VOCAB, prompts, tokenizer_of_words, write_folder  # noqa: E402

__all__ = [
    "BEYOND_LOGITS",
    "LENGTH",
    "TINY",
    "VOCAB",
    "prompts",
    "tokenizer_of_words",
    "write_folder",
]

# Of which CI tests gradients, packed rows and greedy text too; of the others `make campaign` does.
BEYOND_LOGITS = ("gpt2", "gemma3", "olmo2", "deepseek_v3", "gpt_oss", "qwen3_moe")


def read_tiny(folder: Path) -> tuple[ModelDefinition, Params]:
    """The model of a folder and its parameters, as the decoder takes them."""
    family, model = read_folder(str(folder))
    definition = define(model)
    return definition, padded(definition, read_arrays(family, definition, folder))


def read_arrays(family, definition: ModelDefinition, folder: Path) -> dict[str, np.ndarray]:
    """Our arrays as a checkpoint holds them, on the first device."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    targets = {
        name: jax.ShapeDtypeStruct(shape, np.dtype("float32"), sharding=place)
        for name, shape in canonical_shapes(definition).items()
    }
    arrays = read_weights(family, definition, TensorFolder(str(folder)), targets)
    return {name: np.asarray(array) for name, array in arrays.items()}


def padded(definition: ModelDefinition, arrays: dict[str, np.ndarray]) -> Params:
    """With rows of zeros for the padding of the vocabulary."""
    result = {}
    for name, info in (definition.parameters | definition.variables).items():
        missing = [(0, a - b) for a, b in zip(info.shape, arrays[name].shape, strict=True)]
        assert max(m for _, m in missing) <= padded_vocab(definition.config)
        result[name] = np.pad(arrays[name], missing)
    return result


def batch_of(tokens: np.ndarray, targets: np.ndarray | None = None) -> Batch:
    """Rows of one document each."""
    ones = np.ones(tokens.shape, np.int32)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    targets = tokens if targets is None else targets
    return Batch(
        tokens.astype(np.int32), targets.astype(np.int32), ones.astype(np.float32), ones, positions
    )


def logits_of(model: ModelDefinition, params: Params, batch: Batch) -> np.ndarray:
    """`[B, T, vocab]` float32."""
    # A program that runs once is compiled in a third of the time, with equal results.
    options = {"xla_backend_optimization_level": 1}
    program = jax.jit(lambda p, b: model.bind(p).logits(b), compiler_options=options)
    return np.asarray(program(params, batch))
