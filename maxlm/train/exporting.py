"""From a run's checkpoint to a folder that transformers reads, whatever mesh wrote the checkpoint.

In: a run; out: config.json, weights as safetensors, tokenizer, generation_config.json and a model card.
It works on the host, array by array, and asks for no mesh: memory holds one stacked array (three, where
a family joins queries, keys and values).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from maxlm import storage
from maxlm.config.derive_model import longest_length
from maxlm.config.load import load_config
from maxlm.config.schema import RunConfig
from maxlm.data.document_markers import documents_begin_with_bos
from maxlm.data.tokenizers import Tokenizer, load_tokenizer
from maxlm.data.tokenizers.to_huggingface import huggingface_files
from maxlm.errors import CheckpointError, ConfigError
from maxlm.interop.card import CardFacts, licence_of, model_card
from maxlm.interop.config_json import unsaid, write_model
from maxlm.interop.family import Family
from maxlm.interop.folder import CONFIG
from maxlm.interop.registry import FAMILIES, family_named, family_of_model
from maxlm.interop.write_weights import SHARD_BYTES, write_weights
from maxlm.model.count import count_parameters
from maxlm.model.definition import define
from maxlm.train.checkpoint_arrays import read_on_host
from maxlm.train.checkpoint_format import Description
from maxlm.train.checkpoints import Checkpoints
from maxlm.train.checksum import checksum_on_host
from maxlm.train.run_folder import RunFolder, require_run
from maxlm.train.sinks import read_metrics

DTYPES = {"float32": np.dtype("float32"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_CARD, _GENERATION = "README.md", "generation_config.json"


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    folder: str
    family: str
    parameters: int
    step: int
    files: list[str]


def export_huggingface(
    reference: str,
    output: str,
    *,
    family: str | None = None,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    licence: str | None = None,
    with_tokenizer: bool = True,
    message: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Export `RUN` or `RUN@STEP`: the averaged weights where the run keeps them.

    Args:
        reference: a run.
        output: the folder to make.
        family: whose architecture to write; None: the one it was imported from, or the first that
            says what the model is.
        dtype: of the weights: `float32` or `bfloat16`.
        shard_bytes: size of a file.
        licence: SPDX identifier, for the card; None: that of an imported model's card.
        with_tokenizer: whether the tokenizer goes too.
        message: told what is done.

    Raises:
        ConfigError: no architecture computes what the model does, or the output is taken.
        CheckpointError: there is no such checkpoint, or it is damaged.
        TokenizerError: the tokenizer has no equal in transformers.
    """
    if storage.list_names(output):
        raise ConfigError(f"{output}: there is something in this folder already: name another one")
    folder, step = require_run(reference)
    config = load_config(folder.config)
    checkpoints = Checkpoints(folder.checkpoints)
    step = checkpoints.latest if step is None else step
    if step is None:
        raise CheckpointError(f"{folder.checkpoints}: there is no complete checkpoint")
    description = checkpoints.description(step)
    chosen = _family(family, config, description)
    theirs = write_model(chosen, config.model)
    tokenizer = load_tokenizer(folder.tokenizer)
    kept = _kept(folder)
    files = _tokenizer_files(tokenizer, config, kept) if with_tokenizer else {}
    model = define(config.model)
    parameters = count_parameters(config.model)
    message(f"{folder.path}: step {step}, {chosen.architecture}, {parameters:,} parameters")
    kind = "params" if config.optimizer.average_decay is None else "average"
    read = _reader(checkpoints.path(step), description, kind, model.variables)
    storage.make_folder(output)
    number = DTYPES[dtype]
    written = write_weights(chosen, model, read, output, dtype=number, shard_bytes=shard_bytes)
    ids = _special_ids(tokenizer)
    files[_GENERATION] = kept.get(_GENERATION) or _json({"_from_model_config": True, **ids})
    facts = _facts(folder, config, description, chosen, dtype)
    licence = licence or licence_of(kept.get(_CARD, b"").decode("utf-8", "replace"))
    files[_CARD] = model_card(facts(licence)).encode()
    # Last, so that a folder with a config is whole.
    files[CONFIG] = _json(theirs | ids | _said_before(kept) | {"torch_dtype": dtype})
    for name, content in files.items():
        storage.write_bytes(storage.join(output, name), content)
    return Exported(output, chosen.name, parameters, step, [*written, *files])


def _family(name: str | None, config: RunConfig, description: Description) -> Family:
    if name is not None:
        return family_named(name)
    before = FAMILIES.get(description.metadata.get("imported", {}).get("family", ""))
    if before is not None and not unsaid(before, config.model):
        return before
    return family_of_model(config.model)


def _reader(
    path: str, description: Description, kind: str, variables: dict[str, Any]
) -> Callable[[str], np.ndarray]:
    """Reads one of our arrays from the checkpoint, held against its checksum."""

    def read(name: str) -> np.ndarray:
        full = f"{'variables' if name in variables else kind}.{name}"
        record = description.arrays.get(full)
        if record is None:
            raise CheckpointError(f"{path}: there is no array '{full}' in this checkpoint")
        array = storage.retried(lambda: read_on_host(path, full))
        if checksum_on_host(array) != record.checksum:
            raise CheckpointError(
                f"{path}: array '{full}': the stored values have changed; export another step"
            )
        return array

    return read


def _kept(folder: RunFolder) -> dict[str, bytes]:
    """Small files of an imported model, as they came."""
    return {
        name: storage.read_bytes(storage.join(folder.huggingface, name))
        for name in storage.list_names(folder.huggingface)
    }


def _tokenizer_files(
    tokenizer: Tokenizer, config: RunConfig, kept: dict[str, bytes]
) -> dict[str, bytes]:
    """Those of an imported model as they came, else made from ours."""
    own = {n: content for n, content in kept.items() if n not in (CONFIG, _GENERATION, _CARD)}
    if own.keys() & {"tokenizer.json", "tokenizer.model", "vocab.json"}:
        return own
    begins = documents_begin_with_bos(config.data)
    length = longest_length(config.data)
    return own | huggingface_files(tokenizer, add_bos=begins, max_length=length)


def _special_ids(tokenizer: Tokenizer) -> dict[str, int | None]:
    pad = tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": pad}
    return {f"{name}_token_id": value for name, value in ids.items()}


def _said_before(kept: dict[str, bytes]) -> dict[str, Any]:
    """Special ids of the config.json that a model came with (which may name several ends)."""
    before = json.loads(kept[CONFIG]) if CONFIG in kept else {}
    return {n: before[n] for n in ("bos_token_id", "eos_token_id", "pad_token_id") if n in before}


def _facts(
    folder: RunFolder, config: RunConfig, description: Description, family: Family, dtype: str
) -> Callable[[str | None], CardFacts]:
    records: list[dict[str, Any]] = []
    if storage.exists(folder.metrics):
        records = [r for r in read_metrics(folder.path) if r.get("step", 0) <= description.step]
    evals: dict[str, dict[str, Any]] = {}
    tokens = None
    for record in records:
        if record["kind"] == "eval":
            evals[str(record.get("set", "eval"))] = record
        elif record["kind"] == "train":
            tokens = record.get("tokens", tokens)
    return lambda licence: CardFacts(
        name=config.name,
        architecture=family.architecture,
        parameters=count_parameters(config.model),
        step=description.step,
        context=longest_length(config.data),
        dtype=dtype,
        tokens=tokens,
        data={name: source.weight for name, source in config.data.mixture.items()},
        evals=evals,
        licence=licence,
        source=description.metadata.get("imported", {}).get("source"),
    )


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
