"""Tokenize sources into a token store; the same call again continues, or finds it finished.

    sources ─find─▶ files ─plan─▶ units ─workers─▶ shards + a record per finished unit ─▶ manifest

While it is unfinished, `OUTPUT/unfinished/` holds the settings and the records; the manifest is
written last, and with it the store is whole. Shards are committed by renaming, records after their
shards, so that a kill at any moment loses only the units under way.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from maxlm import storage
from maxlm.data.document import OnError
from maxlm.data.manifest import describe_difference, manifest_body, manifest_head, manifest_text
from maxlm.data.shards import FILES, ShardRecord
from maxlm.data.sources.finding import find_files
from maxlm.data.sources.source_file import SourceFile
from maxlm.data.store import MANIFEST, TokenStore
from maxlm.data.tokenize.plan import Unit, plan_units, text_bytes
from maxlm.data.tokenize.pool import Task, run_here, run_workers
from maxlm.data.tokenize.schedule import Schedule
from maxlm.data.tokenize.settings import StoreSettings
from maxlm.data.tokenize.unit import Counts, Job, UnitResult, hash_file
from maxlm.data.tokenizers import Tokenizer, load_tokenizer
from maxlm.errors import ConfigError, DataError
from maxlm.lock import only_process

# Holds what a finished store no longer needs.
UNFINISHED = "unfinished"
# Less text than this is done before worker processes would have started.
SMALL_BYTES = 4 << 20
# A finished store's sources are hashed again up to so many bytes; above, names and sizes decide.
REHASHED_BYTES = 1 << 30


@dataclass
class TokenizeProgress:
    """How far it is; given to the caller's `progress` after every change.

    Attributes:
        total_bytes: of text, estimated from the files' sizes.
        reused_bytes: of these, what an earlier run had finished.
        done: documents, tokens and bytes of this run.
    """

    total_bytes: int
    reused_bytes: int = 0
    done: Counts = field(default_factory=Counts)


@dataclass(frozen=True)
class TokenizeResult:
    """The store, and whether it was there before."""

    store: TokenStore
    already_complete: bool


def tokenize(
    sources: Sequence[str],
    *,
    tokenizer: str | Tokenizer,
    output: str,
    settings: StoreSettings | None = None,
    on_error: OnError = OnError.FAIL,
    workers: int | None = None,
    progress: Callable[[TokenizeProgress], None] | None = None,
) -> TokenizeResult:
    """Write the token store `output`, or continue it.

    Args:
        sources: files, folders, globs, `tfds:…`, `sample:…` (see `find_files`).
        tokenizer: a tokenizer, or what `load_tokenizer` takes.
        output: folder of the store, local or remote.
        settings: splits, markers, dtype and how sources are read.
        on_error: what to do about bad input.
        workers: processes; None: one per core (one for a small text). The result does not depend on it. With more than
            one, a program that calls this must do so under `if __name__ == "__main__":`.
        progress: called often.

    Raises:
        ConfigError: the output holds a store with other settings or sources.
        DataError: input cannot be read (under `fail`); all finished units are kept.
        StorageError: the disk is full, or the like; all finished units are kept.
    """
    settings = settings or StoreSettings()
    output = output.rstrip("/")
    loaded = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
    files = find_files(sources)
    settings.check_documents(len(files), f"{_files(len(files))} hold")
    settings.dtype_for(loaded.vocab_size)
    run = _Run(output, settings, loaded, files, on_error)
    if storage.exists(storage.join(output, MANIFEST)):
        run.check_finished()
        return TokenizeResult(TokenStore(output), already_complete=True)
    run.check_folder()
    lock = storage.join(output, UNFINISHED, "lock")
    with only_process(lock, f"{output}: another process is writing this store"):
        run.begin()
        run.work(workers, progress or (lambda _: None))
        run.finish()
    return TokenizeResult(TokenStore(output), already_complete=False)


class _Run:
    """One call of `tokenize`."""

    def __init__(
        self,
        output: str,
        settings: StoreSettings,
        tokenizer: Tokenizer,
        files: list[SourceFile],
        on_error: OnError,
    ):
        self.output, self.settings, self.tokenizer = output, settings, tokenizer
        self.files, self.on_error = files, on_error
        self.dtype = settings.dtype_for(tokenizer.vocab_size)
        self.folder = storage.join(output, UNFINISHED)
        self.hashes: dict[int, str] = {}  # by the number of the file

    def check_finished(self) -> None:
        """Raise ConfigError unless the finished store is what was asked for."""
        manifest = TokenStore(self.output).manifest
        keys = ["name", "format", "bytes"]
        if sum(file.bytes for file in self.files) <= REHASHED_BYTES:
            keys.append("sha256")
            self.hashes = {number: hash_file(file) for number, file in enumerate(self.files)}
        self._refuse_difference(_meaning(manifest, keys), _meaning(self._manifest_head(), keys))
        storage.remove_tree(self.folder)  # a kill just after the manifest leaves it

    def check_folder(self) -> None:
        """Raise ConfigError when the output is a folder of something else."""
        names = storage.list_names(self.output)
        if names and UNFINISHED not in names:
            raise ConfigError(
                f"{self.output}: holds {', '.join(names[:5])} but no token store; choose another "
                "folder"
            )

    def begin(self) -> None:
        """Write settings, or check that they are those of the run to continue."""
        where = storage.join(self.folder, "settings.json")
        head = self._manifest_head()
        if storage.exists(where):
            # Sizes may differ: files that were mended are read again, unit by unit.
            before = json.loads(storage.read_text(where))
            keys = ["name", "format"]
            self._refuse_difference(_meaning(before, keys), _meaning(head, keys))
            return
        storage.write_text(where, json.dumps(head, indent=1))

    def work(self, workers: int | None, progress: Callable[[TokenizeProgress], None]) -> None:
        """Do all units that are not done, and hash the sources."""
        self.tokenizer.save(storage.join(self.output, "tokenizer"))
        groups = plan_units(self.files, self.settings.read, self.settings.shard_bytes)
        state = TokenizeProgress(sum(map(text_bytes, self.files)))
        self.records = set(storage.list_names(self.folder))
        self.schedule = Schedule(groups, self._recorded)
        hashing = iter(enumerate(self.files))

        def next_task() -> Task | None:
            if (chosen := self.schedule.next()) is not None:
                return chosen
            return next(hashing, None)

        def report(counts: Counts) -> None:
            state.done.add(counts)
            state.reused_bytes = self.schedule.reused_bytes
            progress(state)

        job = Job(self.output, self.settings, self.dtype.name, self.on_error)
        if workers is None:
            workers = 1 if state.total_bytes <= SMALL_BYTES else _cores()
        done = (
            run_here(job, next_task, report)
            if workers == 1
            else run_workers(job, next_task, report, workers)
        )
        with closing(done):  # workers end with what goes wrong here, not with the interpreter
            for label, task, result in done:
                if isinstance(result, UnitResult):
                    assert isinstance(task, Unit)
                    text = json.dumps(result.to_dict())
                    storage.write_text(self._record_path(task), text)
                    self.schedule.finish(label, task, result)
                else:
                    self.hashes[label] = result

    def finish(self) -> None:
        """Write the manifest; from then on the store is whole."""
        results = self.schedule.results()
        shards = {
            name: [result.shards[name] for result in results if name in result.shards]
            for name in self.settings.split_names
        }
        if not any(shards.values()):
            raise DataError(
                f"no text in the {_files(len(self.files))}: nothing to write to {self.output}"
            )
        # Each unit saw its own documents only.
        count = max(sum(record.documents for record in records) for records in shards.values())
        self.settings.check_documents(count, f"the {_files(len(self.files))} holds")
        manifest = {
            **self._manifest_head(),
            **manifest_body(shards, [result.skipped for result in results]),
        }
        self._remove_strays(shards)
        storage.write_text(storage.join(self.output, MANIFEST), manifest_text(manifest))
        storage.remove_tree(self.folder)

    def _remove_strays(self, shards: dict[str, list[ShardRecord]]) -> None:
        """Remove what killed runs left half-written, and shards of files that have changed since."""
        for split, records in shards.items():
            folder = storage.join(self.output, split)
            wanted = {f"{record.name}.{kind}" for record in records for kind in FILES}
            for name in storage.list_names(folder):
                if name not in wanted:
                    storage.remove_file(storage.join(folder, name))

    def _manifest_head(self) -> dict[str, Any]:
        """What is known of the manifest before the first document is read."""
        sources = [
            {
                "name": file.name,
                "format": file.format,
                "bytes": file.bytes,
                "sha256": self.hashes.get(number),
            }
            for number, file in enumerate(self.files)
        ]
        return manifest_head(
            settings=self.settings.to_dict(),
            tokenizer=self.tokenizer,
            dtype=self.dtype,
            sources=sources,
        )

    def _refuse_difference(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        lines = describe_difference(before, now)
        if lines:
            raise ConfigError(
                f"{self.output} was begun with other settings or sources (there → asked for):\n"
                + "\n".join(lines)
                + "\nName another --output, or remove this one to write it anew."
            )

    def _record_path(self, unit: Unit) -> str:
        return storage.join(self.folder, f"{unit.name}.json")

    def _recorded(self, unit: Unit) -> UnitResult | None:
        """The result of a unit that was finished earlier, if its sources are as they were."""
        path = self._record_path(unit)
        if f"{unit.name}.json" not in self.records:
            return None
        result = UnitResult.of(json.loads(storage.read_text(path)))
        return result if result.key == unit.key else None


def _meaning(manifest: dict[str, Any], source_keys: list[str]) -> dict[str, Any]:
    """What must be equal for a store to be the one that was asked for."""
    sources = {
        f"{number} ({source['name']})": {key: source[key] for key in source_keys}
        for number, source in enumerate(manifest["sources"], 1)
    }
    kept = {key: manifest[key] for key in ("tokenizer", "dtype", "settings")}
    return {**kept, "source": sources}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _files(count: int) -> str:
    return "source file" if count == 1 else f"{count} source files"
