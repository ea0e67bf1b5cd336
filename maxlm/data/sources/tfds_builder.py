"""TFDS data sets, without TensorFlow: prepared builders whose files are array records.

In goes `tfds:NAME_OR_FOLDER:SPLIT` (a name as `tfds.builder` takes it, or a prepared builder's
folder); out come its examples' texts, by ranges of example numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from maxlm import storage
from maxlm.data.document import Document, Problems, Reason
from maxlm.data.sources.source_file import ReadOptions, SourceFile, Stretch
from maxlm.errors import DataError, did_you_mean

_BATCH_EXAMPLES = 256


def find_split(specification: str) -> SourceFile:
    """The source file that stands for a split of a builder.

    Raises:
        DataError: there is no such builder or split, or it cannot be read without TensorFlow.
    """
    builder, split = _open(specification)
    info = builder.info.splits[split]
    name = f"tfds:{builder.info.full_name}:{split}"
    return SourceFile(specification, name, "tfds", max(1, int(info.num_bytes)))


def shard_paths(file: SourceFile) -> list[str]:
    """Paths of the files that a split lies in, sorted."""
    builder, split = _open(file.path)
    return sorted(str(path) for path in builder.info.splits[split].filepaths)


class TfdsReader:
    """A split of a builder, by example numbers."""

    def __init__(self, file: SourceFile, options: ReadOptions):
        self.file, self.options = file, options
        self.ended = True
        self._examples: Any = None

    def stretches(self, target_bytes: int) -> list[Stretch] | None:
        """Ranges of examples with about so many bytes."""
        count = len(self._source())
        step = max(1, target_bytes * count // self.file.bytes)
        return [Stretch(start, min(start + step, count)) for start in range(0, count, step)]

    def read(self, stretch: Stretch, problems: Problems) -> Iterator[Document]:
        """Documents of the examples `[start, stop)`."""
        source = self._source()
        stop = len(source) if stretch.stop is None else stretch.stop
        for first in range(stretch.start, stop, _BATCH_EXAMPLES):
            numbers = range(first, min(first + _BATCH_EXAMPLES, stop))
            try:
                examples = source.__getitems__(numbers)
            except Exception as error:  # the record reader raises types of its own
                problems.report(
                    Reason.NOT_READABLE,
                    f"{self.file.path}, examples {numbers[0]} to {numbers[-1]}: cannot be read: "
                    f"{error}; prepare the builder again",
                )
                continue
            for number, example in zip(numbers, examples, strict=True):
                yield from self._documents(number, example, problems)

    def _documents(
        self, number: int, example: dict[str, Any], problems: Problems
    ) -> Iterator[Document]:
        """The document of an example, or none."""
        field, name = self.options.text_field, self.file.name
        where = f"{self.file.path}, example {number}"
        if field not in example:
            problems.report(
                Reason.NO_TEXT,
                f"{where}: no feature '{field}'{did_you_mean(field, example)}; it has "
                f"{', '.join(example)}; `--text-field NAME` names another",
            )
            return
        text = example[field]
        try:
            text = text.decode("utf-8") if isinstance(text, bytes) else text
        except UnicodeDecodeError as error:
            problems.report(
                Reason.NOT_UTF8, f"{where}: not UTF-8 text: {error.reason} at byte {error.start}"
            )
            return
        if not isinstance(text, str):
            problems.report(
                Reason.NOT_A_STRING,
                f"{where}: the feature '{field}' is a {type(text).__name__}, no text",
            )
            return
        yield Document(text, name, number, f"{name}:{number}")

    def _source(self) -> Any:
        if self._examples is None:
            builder, split = _open(self.file.path)
            self._examples = builder.as_data_source(split=split)
        return self._examples


@lru_cache(maxsize=4)
def _open(specification: str) -> tuple[Any, str]:
    """The builder and the name of the split."""
    name, _, split = specification.removeprefix("tfds:").rpartition(":")
    if not name or "/" in split:
        raise DataError(f"{specification}: a TFDS source is tfds:NAME_OR_FOLDER:SPLIT")
    import tensorflow_datasets as tfds

    try:
        if storage.exists(storage.join(name, "dataset_info.json")):
            builder = tfds.builder_from_directory(name)
        else:
            builder = tfds.builder(name, try_gcs=False)
    except Exception as error:  # TFDS raises types of many modules
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{specification}: no such TFDS builder, and no prepared builder's folder (one with a "
            f"dataset_info.json): {first}"
        ) from error
    splits = list(builder.info.splits)
    if not splits:
        raise DataError(
            f"{specification}: this builder is not prepared on this machine; prepare it with "
            f"tfds.builder('{name}', file_format='array_record').download_and_prepare()"
        )
    kind = getattr(builder.info.file_format, "value", builder.info.file_format)
    if kind != "array_record":
        raise DataError(
            f"{specification}: its files are {kind}, which need TensorFlow; prepare the builder "
            "with file_format='array_record', or convert it with `tfds convert_format`"
        )
    try:
        builder.info.splits[split]
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{specification}: no split '{split}'{did_you_mean(split, splits)}; there are "
            f"{', '.join(splits)}"
        ) from error
    return builder, split
