"""Tables in row groups: Parquet files, and Arrow files as `datasets` saves them."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

from longvita.data.errors import DataError
from longvita.data.storage import remote

ROWS_AT_ONCE = 32
"""Rows in memory at once, with their pictures."""
TABLES_KEPT = 64
"""Files that stay open."""


def open_table(path: str) -> Table:
    """Open a table; the last TABLES_KEPT files stay open. Raises OSError, and DataError for a file that is no table."""
    return _open(path, json.dumps(remote.state(path)))


@functools.lru_cache(maxsize=TABLES_KEPT)
def _open(path: str, state: str) -> Table:
    import pyarrow

    try:
        return _ArrowTable(path) if path.endswith(".arrow") else _ParquetTable(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # The store failed; pyarrow's error for a damaged footer has no errno.
        raise DataError(f"data file {path} is no table of format parquet: {error}") from error


class _ParquetTable:
    """Groups are the file's row groups."""

    def __init__(self, path: str):
        import pyarrow.parquet

        source = remote.open_file(path) if remote.is_remote(path) else path
        self._file = pyarrow.parquet.ParquetFile(source, buffer_size=1 << 20)
        metadata = self._file.metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        self.columns = self._file.schema_arrow.names
        self.group_bytes = [group.total_byte_size for group in groups]
        self.group_rows = [group.num_rows for group in groups]

    def about(self, group: int) -> str:
        """A description that differs from that of a rewritten group: the column offsets in the footer.

        The column statistics there may not be valid text.
        """
        described = self._file.metadata.row_group(group)
        columns = [described.column(number) for number in range(described.num_columns)]
        return f"{described.num_rows} rows, {[(c.data_page_offset, c.total_compressed_size) for c in columns]}"

    def rows(self, group: int, columns: list[str]) -> Iterator[Any]:
        """Yield the rows of a group in order, as record batches of one row."""
        for batch in self._file.iter_batches(ROWS_AT_ONCE, [group], columns, use_threads=False):
            yield from _rows(batch)


class _ArrowTable:
    """Groups are the record batches of an Arrow stream or file."""

    def __init__(self, path: str):
        import pyarrow

        local = not remote.is_remote(path)
        source = pyarrow.memory_map(path) if local else pyarrow.PythonFile(remote.open_file(path), mode="r")
        try:
            reader = pyarrow.ipc.open_file(source)
            self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        except pyarrow.ArrowInvalid:
            source.seek(0)
            reader = pyarrow.ipc.open_stream(source)
            self._batches = list(reader)
        self.columns = reader.schema.names
        self.group_bytes = [batch.nbytes for batch in self._batches]
        self.group_rows = [batch.num_rows for batch in self._batches]

    def about(self, group: int) -> str:
        return f"{self._batches[group].num_rows} rows, {self.group_bytes[group]} bytes"

    def rows(self, group: int, columns: list[str]) -> Iterator[Any]:
        return _rows(self._batches[group].select(columns))


Table = _ParquetTable | _ArrowTable


def _rows(batch: Any) -> Iterator[Any]:
    return (batch.slice(number, 1) for number in range(batch.num_rows))
