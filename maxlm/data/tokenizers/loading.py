"""Finding out what a path holds and loading it as a tokenizer.

In goes `byte`, a file or a folder, local or remote; out comes a `Tokenizer`, or an error that says
what was looked for.
"""

from __future__ import annotations

import gzip
import os
import zlib
from typing import Any

from maxlm import storage
from maxlm.data.tokenizers.byte import ByteTokenizer
from maxlm.data.tokenizers.huggingface import (
    FILE,
    MERGES_FILE,
    VOCABULARY_FILE,
    HuggingFaceTokenizer,
)
from maxlm.data.tokenizers.huggingface_spec import parse_object
from maxlm.data.tokenizers.protocol import Tokenizer
from maxlm.data.tokenizers.saved import DESCRIPTION, read_saved
from maxlm.data.tokenizers.sentencepiece_model import FILE as MODEL_FILE
from maxlm.data.tokenizers.sentencepiece_model import SentencePieceTokenizer
from maxlm.errors import TokenizerError, did_you_mean

_ACCEPTED = (
    "a tokenizer is 'byte', a SentencePiece .model file, a Hugging Face tokenizer.json (or .gz), "
    "a folder with one of these or with GPT-2's vocab.json and merges.txt (also named "
    "encoder.json and vocab.bpe), or a run or token store, which holds its own"
)
_GPT2_NAMES = ((VOCABULARY_FILE, MERGES_FILE), ("encoder.json", "vocab.bpe"))


def load_tokenizer(path_or_name: str | os.PathLike[str]) -> Tokenizer:
    """Load a tokenizer.

    Args:
        path_or_name: `byte`; a `.model` file; a `tokenizer.json` or `tokenizer.json.gz`; a folder
            that `Tokenizer.save` wrote; a Hugging Face or GPT-2 folder; a run or token store, whose
            `tokenizer` folder is loaded.

    Raises TokenizerError when there is none, or it is damaged.
    """
    path = os.fspath(path_or_name)
    if path == "byte":
        return ByteTokenizer()
    if path.endswith(".model") and storage.exists(path) and not _is_folder(path):
        return SentencePieceTokenizer(storage.read_bytes(path), path)
    if path.endswith((".json", ".json.gz")) and storage.exists(path):
        return _load_json(path)
    names = storage.list_names(path)
    if names and not (storage.is_remote(path) and names == [path.rsplit("/", 1)[-1]]):
        return _load_folder(path, names)
    if storage.exists(path):
        what = "an empty folder" if _is_folder(path) else "no tokenizer's file"
        raise TokenizerError(f"{path}: {what}; {_ACCEPTED}")
    raise TokenizerError(f"{path}: no such tokenizer{did_you_mean(path, ['byte'])}; {_ACCEPTED}")


def _load_folder(path: str, names: list[str]) -> Tokenizer:
    if DESCRIPTION in names:
        return _load_saved(path)
    for name in (FILE, FILE + ".gz"):
        if name in names:
            return _load_json(storage.join(path, name))
    for vocabulary, merges in _GPT2_NAMES:
        if vocabulary in names and merges in names:
            files = {
                VOCABULARY_FILE: storage.read_bytes(storage.join(path, vocabulary)),
                MERGES_FILE: storage.read_bytes(storage.join(path, merges)),
            }
            return HuggingFaceTokenizer("gpt2", files, config=_config(path), name=path)
        if vocabulary in names or merges in names:
            there, missing = (vocabulary, merges) if vocabulary in names else (merges, vocabulary)
            raise TokenizerError(f"{path}: has {there} but not {missing}; GPT-2 BPE needs both")
    if "tokenizer" in names:
        inner = storage.join(path, "tokenizer")
        return _load_folder(inner, storage.list_names(inner))
    found = [name for name in names if name.endswith((".model", ".json.gz"))]
    if MODEL_FILE in names or len(found) == 1:
        return load_tokenizer(storage.join(path, MODEL_FILE if MODEL_FILE in names else found[0]))
    if found:
        raise TokenizerError(f"{path}: several tokenizers: {', '.join(found)}; name one of them")
    listing = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    raise TokenizerError(f"{path}: no tokenizer in this folder (it holds {listing}); {_ACCEPTED}")


def _load_saved(folder: str) -> Tokenizer:
    saved = read_saved(folder)
    tokenizer: Tokenizer
    try:
        if saved.kind == "byte":
            tokenizer = ByteTokenizer()
        elif saved.kind == "sentencepiece":
            tokenizer = SentencePieceTokenizer(saved.files[MODEL_FILE], folder)
        elif saved.kind in ("hf", "gpt2"):
            tokenizer = HuggingFaceTokenizer(saved.kind, saved.files, saved.specials, name=folder)
        else:
            raise TokenizerError(f"{folder}: a tokenizer of unknown kind '{saved.kind}'")
    except KeyError as error:
        raise TokenizerError(f"{folder}: its description names no file {error}") from error
    if tokenizer.hash != saved.hash or tokenizer.vocab_size != saved.vocab_size:
        raise TokenizerError(
            f"{folder}: its files give {tokenizer.vocab_size} ids and hash {tokenizer.hash[:12]}…, "
            f"its description says {saved.vocab_size} and {saved.hash[:12]}…"
        )
    return tokenizer


def _load_json(path: str) -> Tokenizer:
    content = storage.read_bytes(path)
    if path.endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise TokenizerError(f"{path}: damaged gzip file: {error}") from error
    config = _config(path.rsplit("/", 1)[0] if "/" in path else ".")
    return HuggingFaceTokenizer("hf", {FILE: content}, config=config, name=path)


def _config(folder: str) -> dict[str, Any]:
    """The `tokenizer_config.json` beside a tokenizer, which names its specials."""
    path = storage.join(folder, "tokenizer_config.json")
    return parse_object(storage.read_bytes(path), path) if storage.exists(path) else {}


def _is_folder(path: str) -> bool:
    return not storage.is_remote(path) and os.path.isdir(path.removeprefix("file://"))
