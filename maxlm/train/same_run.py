"""Refusing processes that would not train the same run: other code, config, data or folder.

Each check is called by all processes together, compares them with the first, and raises on all of
them a ParallelError that names the process and what differs. On one process nothing is compared.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import time
from pathlib import Path
from typing import Any

import maxlm
from maxlm import storage
from maxlm.config.schema import RunConfig
from maxlm.data.loader import Loader
from maxlm.data.store import TokenStore
from maxlm.errors import MissingError
from maxlm.parallel.agreement import process_count, process_index, require_same, wait_for_all

# Their arithmetic, or what they send each other, may differ from version to version.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
# A mounted share may tell for a minute that a new file is not there.
_SHARE_SECONDS = 90.0


def require_same_start(config: RunConfig, branch_from: str | None) -> None:
    """Compare code and config, before anything is opened. Raises ParallelError."""
    if process_count() == 1:
        return
    code = {name: importlib.metadata.version(name) for name in PACKAGES}
    require_same(
        "code",
        {"maxlm": maxlm.__version__, "maxlm's source": source_hash(), **code},
        hint="install the same version everywhere",
    )
    require_same(
        "config",
        {**config.model_dump(mode="json"), "--branch-from": branch_from},
        hint="start all processes with the same command",
    )


def require_same_data(config: RunConfig, loader: Loader, tokenizer_hash: str) -> None:
    """Compare the resolved config and what every store holds. Raises ParallelError."""
    if process_count() == 1:
        return
    sources = {name: source.hash[:16] for name, source in loader.sources.items()}
    sets = {name: TokenStore(one.store).hash[:16] for name, one in config.eval.sets.items()}
    require_same(
        "data",
        {
            "data.mixture": sources,
            "eval.sets": sets,
            "tokenizer": tokenizer_hash[:16],
            "data hash": loader.hash[:16],
        },
        hint="copy the stores again: on every machine, the path must hold the same store",
    )
    # What is derived rests on the run's folder too, which may hold another config.
    require_same("config", config.model_dump(mode="json"), hint="the run's folder must be shared")


def require_shared(path: str) -> None:
    """Check that all processes see a file that the first has written. Raises ParallelError."""
    if process_count() == 1:
        return
    wait_for_all("the run's folder")
    require_same(
        "run's folder",
        {path: _content(path)},
        hint="`output` must be a folder that all machines share, or on gs://",
    )


def source_hash() -> str:
    """A hash of maxlm's Python files: two checkouts of one version may differ."""
    digest = hashlib.sha256()
    root = Path(maxlm.__file__).parent
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _content(path: str) -> Any:
    deadline = time.monotonic() + (_SHARE_SECONDS if process_index() else 0)
    while True:
        try:
            return hashlib.sha256(storage.read_bytes(path)).hexdigest()[:16]
        except MissingError:
            if time.monotonic() >= deadline:
                return None
        time.sleep(1.0)
