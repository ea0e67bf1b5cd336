"""A tokenizer as a folder: its files and a description that says what they are, with hashes.

In go a kind, special ids and files by name; out comes a folder that travels with stores, runs and
checkpoints. Reading it back verifies every byte.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maxlm import storage
from maxlm.errors import TokenizerError

if TYPE_CHECKING:
    from maxlm.data.tokenizers.protocol import Tokenizer

DESCRIPTION = "maxlm_tokenizer.json"
FORMAT_VERSION = 1
SPECIALS = ("bos_id", "eos_id", "pad_id", "unk_id")


@dataclass(frozen=True)
class Saved:
    """What is written: kind, size, special ids and files (name → content)."""

    kind: str
    vocab_size: int
    specials: dict[str, int | None]
    files: dict[str, bytes]

    @classmethod
    def of(cls, tokenizer: Tokenizer, files: dict[str, bytes]) -> Saved:
        """The saved form of a tokenizer with these files."""
        specials = {name: getattr(tokenizer, name) for name in SPECIALS}
        return cls(tokenizer.kind, tokenizer.vocab_size, specials, files)

    @property
    def hash(self) -> str:
        """sha256 (hex) over kind, special ids and the files' content: over what decides the ids."""
        facts = {"kind": self.kind, **self.specials, "files": self._file_hashes()}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def write(self, folder: str) -> None:
        """Write files, then the description, so that a folder with a description is whole."""
        for name, content in self.files.items():
            storage.write_bytes(storage.join(folder, name), content)
        description = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "vocab_size": self.vocab_size,
            **self.specials,
            "hash": self.hash,
            "files": self._file_hashes(),
        }
        text = json.dumps(description, indent=2) + "\n"
        storage.write_text(storage.join(folder, DESCRIPTION), text)

    def _file_hashes(self) -> dict[str, str]:
        return {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}


def read_saved(folder: str) -> Saved:
    """Read a folder that `Saved.write` wrote. Raises TokenizerError when it is damaged."""
    path = storage.join(folder, DESCRIPTION)
    description = _parse(path)
    try:
        names = dict(description["files"])
        saved = Saved(
            str(description["kind"]),
            int(description["vocab_size"]),
            {name: description[name] for name in SPECIALS},
            {name: _read_file(folder, name) for name in names},
        )
        expected = description["hash"]
    except (KeyError, TypeError, ValueError) as error:
        raise TokenizerError(f"{path}: not a tokenizer's description: {error!r}") from error
    for name, content in saved.files.items():
        found = hashlib.sha256(content).hexdigest()
        if found != names[name]:
            raise TokenizerError(
                f"{storage.join(folder, name)}: damaged: sha256 is {found[:12]}…, the description "
                f"says {names[name][:12]}…; copy the tokenizer again from where it was made"
            )
    if saved.hash != expected:
        raise TokenizerError(
            f"{path}: damaged: its content hashes to {saved.hash[:12]}…, it says {expected[:12]}…"
        )
    return saved


def _parse(path: str) -> dict[str, Any]:
    try:
        description = json.loads(storage.read_text(path))
    except json.JSONDecodeError as error:
        raise TokenizerError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    if not isinstance(description, dict):
        raise TokenizerError(f"{path}: not a tokenizer's description, but {type(description)}")
    version = description.get("format_version")
    if version != FORMAT_VERSION:
        raise TokenizerError(
            f"{path}: format version {version!r}; this maxlm reads {FORMAT_VERSION}: update maxlm"
        )
    return description


def _read_file(folder: str, name: str) -> bytes:
    if "/" in name or "\\" in name:
        raise TokenizerError(f"{folder}: the description names a file outside of it: {name!r}")
    path = storage.join(folder, name)
    if not storage.exists(path):
        raise TokenizerError(f"{path}: missing; the description in its folder names it")
    return storage.read_bytes(path)
