"""From what a user names (files, folders, globs, data sets, samples) to the files to read.

In go specifications such as `books/`, `'corpus/*.jsonl.gz'`, `tfds:lm1b:train` and
`sample:tinyshakespeare`; out come `SourceFile`s in an order that depends on names alone.
"""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Sequence
from importlib import resources

from maxlm import storage
from maxlm.data.sources.source_file import SourceFile
from maxlm.errors import DataError, did_you_mean

FORMATS = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",  # JSON lines, as many corpora name them
    ".parquet": "parquet",
    ".arrow": "arrow",
}
# Named outright, a file of another kind is read as text, but not these.
_REFUSED = {
    ".csv": "convert it to JSON lines or Parquet",
    ".tsv": "convert it to JSON lines or Parquet",
    ".tar": "unpack it",
    ".tgz": "unpack it",
    ".bz2": "unpack it, or pack it again as .zst or .gz",
    ".xz": "unpack it, or pack it again as .zst or .gz",
    ".warc": "extract its text first",
    ".pdf": "extract its text first",
}
SAMPLES = {"tinyshakespeare": "tinyshakespeare.txt"}
# Beside the data of a Hugging Face data set, not part of it.
_DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_ACCEPTED = (
    "a source is a file, a folder or a quoted glob of .txt, .md, .jsonl or .json lines (these also "
    ".gz, .zst), .parquet; a folder of Hugging Face's save_to_disk; tfds:NAME_OR_FOLDER:SPLIT; sample:"
    + ", sample:".join(SAMPLES)
)


def find_files(specifications: Sequence[str]) -> list[SourceFile]:
    """Files that the specifications name, in their order, sorted by name within each.

    Raises:
        DataError: nothing is there, or nothing that can be read.
    """
    files = [file for specification in specifications for file in _find(specification)]
    if not files:
        raise DataError(f"no source is named; {_ACCEPTED}")
    seen: dict[str, str] = {}
    for file in files:
        if file.path in seen:
            raise DataError(f"{file.path}: named twice among the sources; name it once")
        seen[file.path] = file.name
    return files


def format_of(path: str) -> str | None:
    """The format that a file's name tells, or None."""
    _, extension = os.path.splitext(path.removesuffix(".gz").removesuffix(".zst"))
    known = FORMATS.get(extension.lower())
    compressed = path.endswith((".gz", ".zst"))
    return None if compressed and known not in ("text", "jsonl") else known


def _find(specification: str) -> list[SourceFile]:
    if specification.startswith("sample:"):
        return [_sample(specification)]
    if specification.startswith("tfds:"):
        from maxlm.data.sources.tfds_builder import find_split

        return [find_split(specification)]
    if storage.is_remote(specification):
        return _find_remote(specification)
    path = specification.removeprefix("file://")
    if os.path.isdir(path):
        return _find_folder(path)
    if os.path.isfile(path):
        return [_local(path, os.path.basename(path))]
    matches = sorted(name for name in glob.glob(path, recursive=True) if os.path.isfile(name))
    if not matches:
        raise DataError(
            f"{specification}: no such file, and nothing matches it as a pattern; {_ACCEPTED}"
        )
    root = os.path.dirname(path[: _first_wildcard(path)])
    return [_local(match, os.path.relpath(match, root or ".")) for match in matches]


def _find_folder(path: str) -> list[SourceFile]:
    """Files of known formats anywhere below, without hidden ones."""
    files = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            whole = os.path.join(folder, name)
            if format_of(name) and not name.startswith(".") and name not in _DESCRIPTIONS:
                files.append(_local(whole, os.path.relpath(whole, path)))
    if not files:
        raise DataError(f"{path}: no text in this folder: it has no file *" + ", *".join(FORMATS))
    if any(file.format == "arrow" for file in files):
        from maxlm.data.sources.columns import saved_dataset_files

        files = saved_dataset_files(path, files)
    return sorted(files, key=lambda file: file.name)


def _find_remote(specification: str) -> list[SourceFile]:
    """An object, those of a folder that have a known format, or those whose names match."""
    path = specification.rstrip("/")
    folder, _, last = path.rpartition("/")
    if _first_wildcard(last) < len(last):
        names = [n for n in storage.list_names(folder) if fnmatch.fnmatchcase(n, last)]
        if not names:
            raise DataError(f"{specification}: nothing matches it as a pattern; {_ACCEPTED}")
        return [_object(storage.join(folder, name), name) for name in names]
    names = storage.list_names(path)
    if not names or names == [last]:
        if not storage.exists(path):
            raise DataError(f"{specification}: no such object; {_ACCEPTED}")
        return [_object(path, last)]
    known = [name for name in names if format_of(name) and name not in _DESCRIPTIONS]
    if not known:
        raise DataError(f"{path}: no text in this folder: it has no file *" + ", *".join(FORMATS))
    return [_object(storage.join(path, name), name) for name in known]


def _sample(specification: str) -> SourceFile:
    name = specification.removeprefix("sample:")
    if name not in SAMPLES:
        raise DataError(
            f"no sample '{name}'{did_you_mean(name, SAMPLES)}; there is {', '.join(SAMPLES)}"
        )
    path = str(resources.files("maxlm.data.samples").joinpath(SAMPLES[name]))
    return _local(path, specification)


def _local(path: str, name: str) -> SourceFile:
    with storage.typed_errors(path):
        state = os.stat(path)
    name = name.replace(os.sep, "/")
    return SourceFile(path, name, _format_or_text(path), state.st_size, state.st_mtime_ns)


def _object(path: str, name: str) -> SourceFile:
    return SourceFile(path, name, _format_or_text(path), storage.size(path))


def _format_or_text(path: str) -> str:
    """The format of a file that was named. Raises DataError when it is none that can be read."""
    known = format_of(path)
    if known:
        return known
    _, extension = os.path.splitext(path.removesuffix(".gz").removesuffix(".zst"))
    if extension.lower() in _REFUSED:
        raise DataError(
            f"{path}: {extension} is not read: {_REFUSED[extension.lower()]}; {_ACCEPTED}"
        )
    return "text"


def _first_wildcard(path: str) -> int:
    return min((i for i in (path.find(c) for c in "*?[") if i >= 0), default=len(path))
