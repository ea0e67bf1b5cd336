"""The config.json of a Hugging Face folder: read, and understood as a family and a model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from maxlm import storage
from maxlm.config.schema import ModelConfig
from maxlm.errors import ConfigError
from maxlm.interop.config_json import read_model
from maxlm.interop.family import Family
from maxlm.interop.registry import family_of_config

CONFIG = "config.json"


def read_folder(folder: str, *, ignored: Iterable[str] = ()) -> tuple[Family, ModelConfig]:
    """The family of a folder's model, and the resolved model.

    Args:
        folder: with a config.json, local or remote.
        ignored: keys that the caller says do not matter.

    Raises:
        ConfigError: there is no config.json, it is no JSON, or what it says is not supported: with
            the key.
    """
    path = storage.join(folder, CONFIG)
    theirs = read_json(path)
    try:
        family = family_of_config(theirs)
        return family, read_model(family, theirs, ignored=ignored)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def read_json(path: str) -> dict[str, Any]:
    """A JSON object. Raises ConfigError."""
    if not storage.exists(path):
        raise ConfigError(
            f"{path}: there is no such file: a Hugging Face model is a folder with a {CONFIG}, "
            "weights as safetensors and a tokenizer"
        )
    try:
        content = json.loads(storage.read_bytes(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a JSON {type(content).__name__}, not an object")
    return content
