"""From another program's model to a run folder, which everything of ours takes as its own, or to memory.

In: a Hugging Face folder or a llama2.c file; out: RUN with config.yaml, tokenizer/, a checkpoint at
step 0 that holds weights alone, and huggingface/ with the small files that go back out on export; or
the model itself. The weights go into the shards of a mesh as they are read; several processes each read
their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh

from maxlm import __version__, storage
from maxlm.config.choices import Precision
from maxlm.config.dump import to_yaml
from maxlm.config.load import overridden
from maxlm.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig
from maxlm.data.tokenizers import Tokenizer, load_tokenizer
from maxlm.data.tokenizers.huggingface import HuggingFaceTokenizer
from maxlm.errors import ConfigError, TokenizerError
from maxlm.interop.family import Family
from maxlm.interop.folder import CONFIG, read_folder
from maxlm.interop.llama2c import LLAMA2C, Llama2cFile
from maxlm.interop.read_weights import Source, read_weights
from maxlm.interop.safetensors import TensorFolder
from maxlm.interop.vocabulary import check_vocabulary
from maxlm.model.count import count_parameters
from maxlm.model.definition import ModelDefinition, Params, define
from maxlm.parallel.agreement import process_index
from maxlm.train.canonical import canonical_targets, from_canonical
from maxlm.train.checkpoints import Checkpoints
from maxlm.train.execution import execution_of
from maxlm.train.loading import TrainedModel, mesh_for
from maxlm.train.run_folder import RunFolder
from maxlm.train.same_run import require_shared
from maxlm.train.setup import as_started, set_up_jax
from maxlm.train.state import TrainState, abstract_state

# What a Hugging Face folder may hold beside config, weights and tokenizer.json, and an export gives
# back as it came.
KEPT_FILES = (
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "README.md",
)


@dataclass(frozen=True)
class Imported:
    """What an import made."""

    folder: RunFolder
    family: str
    parameters: int
    length: int


def import_huggingface(
    path: str,
    output: str,
    *,
    tokenizer: str | None = None,
    length: int | None = None,
    ignored: list[str] | None = None,
    overrides: list[str] | None = None,
    message: Callable[[str], None] = lambda text: None,
) -> Imported:
    """Import a Hugging Face folder.

    Args:
        path: the folder, local or remote.
        output: the run folder to make.
        tokenizer: where the tokenizer is; None: in the folder.
        length: tokens of context that the run is for; None: what config.json says.
        ignored: keys of config.json that do not matter.
        overrides: `key=value` on the run's config, such as `parallel.fsdp=4`.
        message: told what is done.

    Raises:
        ConfigError: config.json says what is not supported, or the output is taken.
        CheckpointError: the weights are damaged or not those that config.json describes.
        TokenizerError: there is none, or it is another model's.
    """
    _refuse_taken(output)
    family, model = read_folder(path, ignored=ignored or ())
    weights = TensorFolder(path)
    own = _prompted(_tokenizer(tokenizer or path))
    check_vocabulary(model.vocab_size or 0, own.vocab_size, tokenizer or path)
    kept = _kept_files(path)
    config = _run_config(output, model, length, overrides or [], path)
    asked = _asks_for_mesh(overrides)
    return _import(family, config, weights, own, output, kept, path, message, asked=asked)


def load_huggingface(path: str, overrides: list[str] | None = None) -> TrainedModel:
    """The model of a Hugging Face folder, for use and not for training: nothing is written.

    Raises what `import_huggingface` does.
    """
    tokenizer = _prompted(_tokenizer(path))
    config, model, params, mesh = read_huggingface(path, overrides)
    check_vocabulary(config.model.vocab_size or 0, tokenizer.vocab_size, path)
    return TrainedModel(config, 0, model, params, tokenizer, mesh)


def read_huggingface(
    path: str, overrides: list[str] | None = None
) -> tuple[RunConfig, ModelDefinition, Params, Mesh]:
    """A folder's config and weights on a mesh, whether or not it has a tokenizer; errors as above."""
    family, model = read_folder(path)
    config = _run_config(path, model, None, overrides or [], path)
    read = _read(family, config, TensorFolder(path), asked=_asks_for_mesh(overrides))
    state = from_canonical(read.wanted | read.arrays, read.layout, read.model)
    return read.config, read.model, state.params | state.variables, read.mesh


def import_llama2c(
    path: str,
    output: str,
    *,
    tokenizer: str,
    length: int | None = None,
    overrides: list[str] | None = None,
    message: Callable[[str], None] = lambda text: None,
) -> Imported:
    """Import a `.bin` of llama2.c (version 0, float32); arguments and errors as above."""
    _refuse_taken(output)
    weights = Llama2cFile(path)
    own = load_tokenizer(tokenizer)
    check_vocabulary(weights.model.vocab_size or 0, own.vocab_size, tokenizer)
    config = _run_config(output, weights.model, length, overrides or [], path)
    asked = _asks_for_mesh(overrides)
    return _import(LLAMA2C, config, weights, own, output, {}, path, message, asked=asked)


def _import(
    family: Family,
    config: RunConfig,
    weights: Source,
    tokenizer: Tokenizer,
    output: str,
    kept: Mapping[str, bytes],
    source: str,
    message: Callable[[str], None],
    *,
    asked: bool,
) -> Imported:
    parameters = count_parameters(config.model)
    message(f"{source}: {family.name}, {parameters:,} parameters")
    if config.model.rope_context is not None:
        message(_which_factors(config.model))
    read = _read(family, config, weights, asked=asked)
    config = read.config
    folder = RunFolder(output)
    if process_index() == 0:
        tokenizer.save(folder.tokenizer)
        for name, content in kept.items():
            storage.write_bytes(storage.join(folder.huggingface, name), content)
    checkpoints = Checkpoints(folder.checkpoints, asynchronous=False)
    checkpoints.save(
        0,
        read.arrays,
        {
            "cursor": 0,
            "data_hash": "",
            "tokenizer_hash": tokenizer.hash,
            "code_version": __version__,
            "config": config.model_dump(mode="json"),
            "imported": {"family": family.name, "source": source},
        },
    )
    checkpoints.close()
    # Last, so that a folder with a config is whole.
    if process_index() == 0:
        storage.write_text(folder.config, to_yaml(config))
    require_shared(folder.config)
    return Imported(folder, family.name, parameters, config.data.length)


class _Read(NamedTuple):
    """A model's weights as a checkpoint holds them, and what they are for."""

    config: RunConfig
    mesh: Mesh
    model: ModelDefinition
    layout: TrainState
    wanted: dict[str, jax.ShapeDtypeStruct]  # by canonical name
    arrays: dict[str, jax.Array]  # likewise


def _read(family: Family, config: RunConfig, weights: Source, *, asked: bool) -> _Read:
    config = as_started(config)
    set_up_jax(config)
    mesh = mesh_for(config, asked=asked)
    model = define(config.model, execution_of(config, mesh))
    layout = abstract_state(model, optax.identity(), average=False, mesh=mesh)
    wanted = canonical_targets(layout, model)
    prefixes = {"params": model.parameters, "variables": model.variables}
    names = {name: f"{kind}.{name}" for kind, infos in prefixes.items() for name in infos}
    targets = {name: wanted[full] for name, full in names.items()}
    with jax.set_mesh(mesh):
        arrays = read_weights(family, model, weights, targets)
    named = {names[name]: array for name, array in arrays.items()}
    return _Read(config, mesh, model, layout, wanted, named)


def _run_config(
    output: str, model: ModelConfig, length: int | None, overrides: list[str], source: str
) -> RunConfig:
    assert model.max_length
    if length is not None and not 2 <= length <= model.max_length:
        raise ConfigError(
            f"--length {length}: {source} was made for 2 to {model.max_length:,} tokens"
        )
    if model.rope_context is not None:
        model = model.model_copy(update={"rope_context": length or model.max_length})
    parent, name = os.path.split(output.rstrip("/"))
    config = RunConfig(
        name=name,
        output=parent or ".",
        model=model,
        data=DataConfig(length=length or model.max_length),
        train=TrainConfig(precision=Precision.FLOAT32),
    )
    return overridden(config, overrides, source=source)


def _which_factors(model: ModelConfig) -> str:
    context, original = model.rope_context or 0, model.rope_scaling.original_length or 0
    which, sign = ("long", ">") if context > original else ("short", "≤")
    return (
        f"longrope: the {which} factors for texts of every length, by the context of {context:,} "
        f"tokens {sign} {original:,} (--length)"
    )


def _asks_for_mesh(overrides: list[str] | None) -> bool:
    return any(o.startswith("parallel.") for o in overrides or [])


def _refuse_taken(output: str) -> None:
    # The first process speaks for all: by the time that another looks, it may have begun to write.
    if process_index() == 0 and storage.list_names(output):
        raise ConfigError(f"{output}: there is something in this folder already: name another one")


def _tokenizer(path: str) -> Tokenizer:
    try:
        return load_tokenizer(path)
    except TokenizerError as error:
        raise TokenizerError(f"{error}; name the model's tokenizer with --tokenizer") from error


def _prompted(tokenizer: Tokenizer) -> Tokenizer:
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer.as_prompted()
    return tokenizer


def _kept_files(path: str) -> dict[str, bytes]:
    names = set(storage.list_names(path))
    return {
        name: storage.read_bytes(storage.join(path, name)) for name in KEPT_FILES if name in names
    }
