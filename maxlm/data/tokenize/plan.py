"""The plan of work: which stretches of which files make a shard, before any of them is read.

In go source files; out come `Unit`s, each small enough to be done again when it is lost and large
enough that stores have few files. The plan depends on names and sizes alone, so that any number of
workers writes the same shards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from maxlm.data.sources.reading import open_reader
from maxlm.data.sources.source_file import ReadOptions, SourceFile, Stretch

SMALLEST_SHARD, LARGEST_SHARD = 8 << 20, 256 << 20
SHARDS_AIMED_AT = 512
# Text in a byte of a compressed file, roughly: only sizes of shards and the time left rest on it.
EXPANSION = {"gz": 3, "zst": 3, "parquet": 2, "tfds": 1}


@dataclass(frozen=True)
class Piece:
    """A stretch of a file."""

    file: SourceFile
    stretch: Stretch


@dataclass(frozen=True)
class Unit:
    """What one worker does in one go; its shards have the unit's name.

    Attributes:
        name: sorts in the order of the documents.
        pieces: what is read.
        weight: bytes of text, estimated.
        open_ended: whether a next stretch of the same file may follow.
    """

    name: str
    pieces: tuple[Piece, ...]
    weight: int
    open_ended: bool = False

    @property
    def key(self) -> str:
        """Changes when the content that is read may have changed."""
        facts = [(asdict(piece.file), piece.stretch) for piece in self.pieces]
        for file, _ in facts:
            del file["path"]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def next(self) -> Unit:
        """The unit after an open-ended one."""
        group, number = self.name.split("-")
        (piece,) = self.pieces
        start, stop = piece.stretch
        assert stop is not None
        following = replace(piece, stretch=Stretch(stop, 2 * stop - start))
        return replace(self, name=f"{group}-{int(number) + 1:05d}", pieces=(following,))


def plan_units(
    files: list[SourceFile], options: ReadOptions, shard_bytes: int | None
) -> list[list[Unit]]:
    """Units in groups; an open-ended group is its first unit, its others follow by `Unit.next`.

    Args:
        files: the sources, in order.
        options: how they are read.
        shard_bytes: bytes of text in a unit; None: by the sources' size.
    """
    target = shard_bytes or _shard_bytes(files)
    groups: list[list[Unit]] = []
    for number, pieces in enumerate(_groups(files, target)):
        weight = sum(text_bytes(file) for file in pieces)
        if len(pieces) > 1 or weight <= target:
            whole = tuple(Piece(file, Stretch(0, None)) for file in pieces)
            groups.append([Unit(f"{number:05d}-00000", whole, weight)])
            continue
        (file,) = pieces
        stretches = open_reader(file, options).stretches(target)
        if stretches is None:
            first = Piece(file, Stretch(0, target))
            groups.append([Unit(f"{number:05d}-00000", (first,), target, open_ended=True)])
            continue
        share = weight // max(1, len(stretches))
        groups.append(
            [
                Unit(f"{number:05d}-{index:05d}", (Piece(file, stretch),), share)
                for index, stretch in enumerate(stretches)
            ]
        )
    return groups


def text_bytes(file: SourceFile) -> int:
    """Bytes of text in a file, estimated."""
    kind = file.path.rsplit(".", 1)[-1] if file.compressed else file.format
    return file.bytes * EXPANSION.get(kind, 1)


def _groups(files: list[SourceFile], target: int) -> Iterator[list[SourceFile]]:
    """Small files together, others alone."""
    together: list[SourceFile] = []
    size = 0
    for file in files:
        weight = text_bytes(file)
        if together and size + weight > target:
            yield together
            together, size = [], 0
        if weight > target:
            yield [file]
        else:
            together.append(file)
            size += weight
    if together:
        yield together


def _shard_bytes(files: list[SourceFile]) -> int:
    """A power of two that gives some hundreds of shards, within limits."""
    wanted = sum(map(text_bytes, files)) // SHARDS_AIMED_AT
    size = SMALLEST_SHARD
    while size < wanted and size < LARGEST_SHARD:
        size *= 2
    return size
