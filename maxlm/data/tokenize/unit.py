"""One unit of work: its documents read, encoded, written as a shard per split, and recorded.

In go a `Unit` and a `Job`; out come committed shards and a `UnitResult`, which the caller records
when everything else is on disk. Doing a unit again gives the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maxlm import storage
from maxlm.data.document import OnError, Problems
from maxlm.data.shards import FILES, ShardRecord, ShardWriter
from maxlm.data.sources.reading import open_reader, read_encoded
from maxlm.data.sources.source_file import Reader, SourceFile
from maxlm.data.tokenize.plan import Unit
from maxlm.data.tokenize.settings import Markers, StoreSettings
from maxlm.data.tokenizers import Tokenizer, load_tokenizer

# Texts are handed to the tokenizer by so many characters or texts at a time.
BATCH_CHARACTERS, BATCH_TEXTS = 1 << 20, 1024


@dataclass(frozen=True)
class Job:
    """What every unit of a store has in common; travels to the workers."""

    output: str
    settings: StoreSettings
    dtype: str
    on_error: OnError


@dataclass
class Counts:
    """Progress since the last report."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0

    def add(self, other: Counts) -> None:
        """Add another count."""
        self.documents += other.documents
        self.tokens += other.tokens
        self.bytes += other.bytes


@dataclass
class UnitResult:
    """What the record of a finished unit holds.

    Attributes:
        key: of the unit, and of the settings.
        shards: by split.
        skipped: by reason.
        ended: whether an open-ended unit was the last of its file.
    """

    key: str
    shards: dict[str, ShardRecord] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    ended: bool = True

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        shards = {split: record.to_dict() for split, record in self.shards.items()}
        return {"key": self.key, "shards": shards, "skipped": self.skipped, "ended": self.ended}

    @classmethod
    def of(cls, record: dict[str, Any]) -> UnitResult:
        """From JSON."""
        shards = {split: ShardRecord(**shard) for split, shard in record["shards"].items()}
        return cls(record["key"], shards, dict(record["skipped"]), bool(record["ended"]))


class UnitWorker:
    """Does units one after another; keeps the tokenizer and the last reader."""

    def __init__(self, job: Job, report: Callable[[Counts], None]):
        """Load the tokenizer that the store holds."""
        self.job, self._report = job, report
        self._tokenizer: Tokenizer = load_tokenizer(storage.join(job.output, "tokenizer"))
        self._begin, self._end = markers_of(self._tokenizer, job.settings.document_markers)
        self._open: tuple[SourceFile, Reader] | None = None

    def do(self, unit: Unit) -> UnitResult:
        """Do a unit.

        Raises:
            DataError: bad input under `fail`.
            StorageError: the disk is full, or the like.
        """
        problems = Problems(self.job.on_error)
        shards = _Shards(self.job, unit.name)
        try:
            for batch in _batches(self._parts(unit, problems)):
                self._write(batch, shards)
            records = shards.close()
        except BaseException:
            shards.abandon()
            raise
        ended = not unit.open_ended or self._reader(unit.pieces[0].file).ended
        return UnitResult(unit.key, records, dict(sorted(problems.skipped.items())), ended)

    def _parts(self, unit: Unit, problems: Problems) -> Iterator[tuple[str, str, int]]:
        """(split, text, bytes) of every document of the unit."""
        read = self.job.settings.read
        count = 0
        for piece in unit.pieces:
            reader = self._reader(piece.file)
            for document, encoded in read_encoded(reader, piece.stretch, read, problems):
                count += 1
                self.job.settings.check_documents(count, f"{piece.file.name} holds")
                yield from self.job.settings.parts(document.text, encoded)

    def _write(self, batch: list[tuple[str, str, int]], shards: _Shards) -> None:
        encoded = self._tokenizer.encode_batch([text for _, text, _ in batch])
        by_split: dict[str, tuple[list[np.ndarray], list[int], list[int]]] = {}
        markers = len(self._begin) + len(self._end)
        for (split, _, num_bytes), ids in zip(batch, encoded, strict=True):
            arrays, lengths, sizes = by_split.setdefault(split, ([], [], []))
            arrays += (self._begin, ids, self._end)
            lengths.append(len(ids) + markers)
            sizes.append(num_bytes)
        counts = Counts(documents=len(batch))
        for split, (arrays, lengths, sizes) in by_split.items():
            shards.writer(split).add_documents(np.concatenate(arrays), lengths, sum(sizes))
            counts.tokens += sum(lengths)
            counts.bytes += sum(sizes)
        self._report(counts)

    def _reader(self, file: SourceFile) -> Reader:
        if self._open is None or self._open[0] != file:
            self._open = file, open_reader(file, self.job.settings.read)
        return self._open[1]


class _Shards:
    """The shards of a unit, one per split that gets a document."""

    def __init__(self, job: Job, name: str):
        self._job, self._name = job, name
        self._writers: dict[str, ShardWriter] = {}
        remote = storage.is_remote(job.output)
        self._scratch = tempfile.mkdtemp(prefix="maxlm-tokenize-") if remote else None

    def writer(self, split: str) -> ShardWriter:
        if split not in self._writers:
            folder = storage.join(self._scratch or self._job.output, split)
            self._writers[split] = ShardWriter(folder, self._name, self._job.dtype)
        return self._writers[split]

    def close(self) -> dict[str, ShardRecord]:
        order = [split for split in self._job.settings.split_names if split in self._writers]
        records = {split: self._writers[split].close() for split in order}
        if self._scratch:
            for split in order:
                for kind in FILES:
                    file = f"{self._name}.{kind}"
                    content = storage.read_bytes(os.path.join(self._scratch, split, file))
                    storage.write_bytes(storage.join(self._job.output, split, file), content)
            shutil.rmtree(self._scratch, ignore_errors=True)
        return records

    def abandon(self) -> None:
        for writer in self._writers.values():
            writer.abandon()
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)


def markers_of(tokenizer: Tokenizer, markers: Markers) -> tuple[np.ndarray, np.ndarray]:
    """Ids before and after a document, int32 `[0 or 1]` each; what the tokenizer lacks is left out."""
    begin = tokenizer.bos_id if markers in (Markers.BOTH, Markers.BOS) else None
    end = tokenizer.eos_id if markers in (Markers.BOTH, Markers.EOS) else None
    before, after = (np.array([] if i is None else [i], np.int32) for i in (begin, end))
    return before, after


def hash_file(file: SourceFile) -> str:
    """SHA-256 (hex) of a source file as it is stored."""
    digest = hashlib.sha256()
    for path in _paths(file):
        with storage.open_file(path) as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _paths(file: SourceFile) -> list[str]:
    if file.format != "tfds":
        return [file.path]
    from maxlm.data.sources.tfds_builder import shard_paths

    return shard_paths(file)


def _batches(
    parts: Iterator[tuple[str, str, int]],
) -> Iterator[list[tuple[str, str, int]]]:
    batch: list[tuple[str, str, int]] = []
    characters = 0
    for part in parts:
        batch.append(part)
        characters += len(part[1])
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_TEXTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
