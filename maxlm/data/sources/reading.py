"""The reader of a source file, by its format, and documents as a store can take them."""

from __future__ import annotations

from collections.abc import Iterator

from maxlm.data.document import Document, Problems, Reason
from maxlm.data.sources.source_file import Reader, ReadOptions, SourceFile, Stretch
from maxlm.data.sources.streamed import (
    JsonLinesReader,
    SeparatedTextReader,
    WholeTextReader,
    too_large,
)


def open_reader(file: SourceFile, options: ReadOptions) -> Reader:
    """A reader of `file`."""
    if file.format == "text":
        return (SeparatedTextReader if options.document_separator else WholeTextReader)(
            file, options
        )
    if file.format == "jsonl":
        return JsonLinesReader(file, options)
    if file.format == "tfds":
        from maxlm.data.sources.tfds_builder import TfdsReader

        return TfdsReader(file, options)
    from maxlm.data.sources.columns import ArrowReader, ParquetReader

    return (ParquetReader if file.format == "parquet" else ArrowReader)(file, options)


def read_encoded(
    reader: Reader, stretch: Stretch, options: ReadOptions, problems: Problems
) -> Iterator[tuple[Document, bytes]]:
    """Documents of a stretch that hold text, each with its UTF-8 bytes."""
    for document in reader.read(stretch, problems):
        try:
            encoded = document.text.encode("utf-8")
        except UnicodeEncodeError as error:
            problems.report(
                Reason.NOT_UTF8,
                f"{_where(reader, document)}: the text has a lone surrogate "
                f"U+{ord(document.text[error.start]):04X} at character {error.start}, which is no Unicode text",
            )
            continue
        if not encoded:
            # Only counted, and there may be many: no place, which would have to be looked up.
            problems.report(Reason.EMPTY_TEXT, f"{document.source}: the text is empty")
        elif len(encoded) > options.max_document_bytes:
            where = _where(reader, document)
            problems.report(Reason.TOO_LARGE, too_large(where, len(encoded), options))
        else:
            yield document, encoded


def read_documents(
    files: list[SourceFile], options: ReadOptions, problems: Problems
) -> Iterator[Document]:
    """All documents of the files, in order.

    Raises:
        DataError: input cannot be read and `problems` does not skip.
    """
    for file in files:
        reader = open_reader(file, options)
        for document, _ in read_encoded(reader, Stretch(0, None), options, problems):
            yield document


def _where(reader: Reader, document: Document) -> str:
    """The document's place as a person finds it: by line where the file has lines."""
    if isinstance(reader, JsonLinesReader):
        return reader.where(document.position)
    return f"{document.source}, position {document.position}"
