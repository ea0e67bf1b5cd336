"""Tables with a text column: Parquet, and Arrow files as Hugging Face's save_to_disk writes them.

Parquet is read by row groups, Arrow by record batches, a part of either at a time. A row's position
is its number in the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from maxlm import storage
from maxlm.data.document import Document, Problems, Reason
from maxlm.data.sources.source_file import ReadOptions, SourceFile, Stretch
from maxlm.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 1024
_FILE_MAGIC = b"ARROW1"  # the random-access format; save_to_disk writes the streaming one


class _TableReader:
    """What Parquet and Arrow have in common: parts of a table with known sizes."""

    unit = "row group"

    def __init__(self, file: SourceFile, options: ReadOptions):
        self.file, self.options = file, options
        self.ended = True

    def stretches(self, target_bytes: int) -> list[Stretch] | None:
        """Consecutive parts of about so much text; the last stretch goes to the end."""
        import pyarrow as pa

        try:
            sizes = self._part_bytes()
        except (pa.ArrowException, OSError):
            return [Stretch(0, None)]  # reading it will report what is wrong
        starts, size = [0], 0
        for number, part in enumerate(sizes):
            if size and size + part > target_bytes:
                starts.append(number)
                size = 0
            size += part
        return [Stretch(a, b) for a, b in zip(starts, [*starts[1:], None], strict=True)]

    def read(self, stretch: Stretch, problems: Problems) -> Iterator[Document]:
        """Documents of the parts `[start, stop)`."""
        import pyarrow as pa

        path = self.file.path
        try:
            schema = self._schema()
            wrong = _wrong_column(schema, self.options.text_field)
            if wrong:
                if stretch.start == 0:  # once per file
                    problems.report(wrong[0], f"{path}: {wrong[1]}")
                return
            for row, column in self._columns(stretch):
                yield from self._documents(row, column, problems)
        except (pa.ArrowException, OSError) as error:
            problems.report(
                Reason.NOT_READABLE,
                f"{path}: cannot be read as {self.file.format}: {error}; "
                "copy it again from where it came",
            )

    def _part_bytes(self) -> list[int]:
        raise NotImplementedError

    def _schema(self) -> pa.Schema:
        raise NotImplementedError

    def _columns(self, stretch: Stretch) -> Iterator[tuple[int, pa.Array]]:
        """(number of the first row, text column) of consecutive rows."""
        raise NotImplementedError

    def _documents(
        self, first_row: int, column: pa.Array, problems: Problems
    ) -> Iterator[Document]:
        name = self.file.name
        for row, text in enumerate(_texts(column), first_row):
            if isinstance(text, str):
                yield Document(text, name, row, f"{name}:{row}")
            elif text is None:
                problems.report(
                    Reason.NO_TEXT,
                    f"{self.file.path}, row {row}: the column '{self.options.text_field}' is null",
                )
            else:
                problems.report(
                    Reason.NOT_UTF8, f"{self.file.path}, row {row}: not UTF-8 text: {text.reason}"
                )


class ParquetReader(_TableReader):
    """A Parquet file by row groups."""

    def __init__(self, file: SourceFile, options: ReadOptions):
        super().__init__(file, options)
        self._opened: Any = None

    def _table(self) -> Any:
        if self._opened is None:
            import pyarrow.parquet as pq

            self._opened = pq.ParquetFile(storage.open_file(self.file.path))
        return self._opened

    def _schema(self) -> pa.Schema:
        return self._table().schema_arrow

    def _part_bytes(self) -> list[int]:
        metadata = self._table().metadata
        groups = map(metadata.row_group, range(metadata.num_row_groups))
        return [_text_chunk_bytes(group, self.options.text_field) for group in groups]

    def _columns(self, stretch: Stretch) -> Iterator[tuple[int, pa.Array]]:
        table, field = self._table(), self.options.text_field
        count = table.metadata.num_row_groups
        rows = [table.metadata.row_group(group).num_rows for group in range(count)]
        for group in range(count)[stretch.start : stretch.stop]:
            row = sum(rows[:group])
            for batch in table.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[field]):
                yield row, batch.column(0)
                row += len(batch)


class ArrowReader(_TableReader):
    """An Arrow file, streaming or random-access, by record batches."""

    def _schema(self) -> pa.Schema:
        return self._open()[0]

    def _part_bytes(self) -> list[int]:
        schema, batches = self._open()
        index = schema.get_field_index(self.options.text_field)
        return [batch.column(index).nbytes if index >= 0 else 0 for batch in batches]

    def _columns(self, stretch: Stretch) -> Iterator[tuple[int, pa.Array]]:
        schema, batches = self._open()
        index = schema.get_field_index(self.options.text_field)
        row = 0
        for number, batch in enumerate(batches):
            if stretch.stop is not None and number >= stretch.stop:
                return
            if number >= stretch.start:
                yield row, batch.column(index)
            row += len(batch)

    def _open(self) -> tuple[pa.Schema, Iterable[pa.RecordBatch]]:
        """Schema and batches; of a local file, nothing is read that is not used."""
        import pyarrow as pa

        path = self.file.path
        remote = storage.is_remote(path)
        source = pa.PythonFile(storage.open_file(path)) if remote else pa.memory_map(path)
        magic = source.read(len(_FILE_MAGIC))
        source.seek(0)
        if magic == _FILE_MAGIC:
            file = pa.ipc.open_file(source)
            return file.schema, (file.get_batch(i) for i in range(file.num_record_batches))
        stream = pa.ipc.open_stream(source)
        return stream.schema, stream


def saved_dataset_files(folder: str, files: list[SourceFile]) -> list[SourceFile]:
    """Of the files below `folder`, those of the data set that save_to_disk wrote there.

    Raises:
        DataError: it holds several splits, or a file is missing.
    """
    splits = os.path.join(folder, "dataset_dict.json")
    if os.path.exists(splits):
        names = _json(splits).get("splits", [])
        if len(names) != 1:
            raise DataError(
                f"{folder}: a saved DatasetDict with the splits {', '.join(names)}: name the one "
                f"to read, for example {os.path.join(folder, names[0] if names else 'train')}"
            )
        prefix = f"{names[0]}/"
    else:
        prefix = ""
    state = os.path.join(folder, prefix, "state.json")
    if not os.path.exists(state):
        return files
    described = _json(state)
    if described.get("_indices_files"):
        raise DataError(
            f"{folder}: rows were selected or sorted without being written out; load it with "
            "`datasets`, call flatten_indices() and save it again"
        )
    wanted = {prefix + entry["filename"] for entry in described.get("_data_files", [])}
    found = [file for file in files if file.name in wanted]
    missing = wanted - {file.name for file in found}
    if missing:
        raise DataError(f"{folder}: {state} names {sorted(missing)[0]}, which is missing")
    return found


def _json(path: str) -> dict[str, Any]:
    try:
        content = json.loads(storage.read_text(path))
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def _wrong_column(schema: pa.Schema, field: str) -> tuple[Reason, str] | None:
    import pyarrow as pa

    if field not in schema.names:
        return (
            Reason.NO_TEXT,
            f"no column '{field}'{did_you_mean(field, schema.names)}; the columns are "
            f"{', '.join(schema.names[:20])}; `--text-field NAME` names another",
        )
    kind = schema.field(field).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return None
    return Reason.NOT_A_STRING, f"the column '{field}' holds {kind}, not strings"


def _texts(column: pa.Array) -> Iterator[str | UnicodeDecodeError | None]:
    try:
        yield from column.to_pylist()
    except UnicodeDecodeError:
        for value in column:
            try:
                yield value.as_py()
            except UnicodeDecodeError as error:
                yield error


def _text_chunk_bytes(group: Any, field: str) -> int:
    for index in range(group.num_columns):
        chunk = group.column(index)
        if chunk.path_in_schema == field:
            return int(chunk.total_uncompressed_size)
    return int(group.total_byte_size)
