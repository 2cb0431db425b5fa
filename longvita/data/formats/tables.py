"""Tables in row groups: Parquet files, and Arrow files as `datasets` saves them."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from longvita.data.errors import DataError
from longvita.data.formats.row_reader import RowReader, row_reader
from longvita.data.formats.table_values import leaf_cells, no_cells, values_of
from longvita.data.storage import remote
from longvita.errors import shorten

BATCH_BYTES = 4 << 20
"""Bytes of rows that are read at once."""
BATCH_ROWS = 128
"""Most rows that are read at once: those of a repeated value may be larger than the footer says."""
READ_BYTES = 4 << 20
"""Most bytes of one read from a column of a Parquet file, unless one of its pages is larger."""
FOOTER_BYTES = 16 << 10
"""Bytes of the first read of a Parquet file, from its end: most footers."""
TABLES_KEPT = 64
"""Files that stay open."""


def open_table(path: str) -> Table:
    """Open a table; the last TABLES_KEPT files stay open. Raises OSError, and DataError for a file that is no table."""
    return _open(path, json.dumps(remote.state(path)))


@functools.lru_cache(maxsize=TABLES_KEPT)
def _open(path: str, state: str) -> Table:
    import pyarrow

    try:
        return _ArrowTable(path) if path.endswith(".arrow") else _ParquetTable(path, state)
    except (pyarrow.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # The store failed; pyarrow's error for a damaged footer has no errno.
        raise DataError(
            f"data file {path} is no table of format parquet: {shorten(error)}; fix: fetch or write it again"
        ) from error


class _ParquetTable:
    """Groups are the file's row groups. Of a column, the leaves with cells are read apart from the others."""

    def __init__(self, path: str, state: str):
        import pyarrow.parquet

        # Without a buffer, because pyarrow asks for ranges that it needs completely.
        source = remote.open_file(path, piece=0) if remote.is_remote(path) else path
        self._file = pyarrow.parquet.ParquetFile(
            source, metadata=_footer(path), buffer_size=READ_BYTES, pre_buffer=False
        )
        self._key = path, state
        metadata = self._file.metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        self._schema = self._file.schema_arrow
        self.columns = self._schema.names
        self.group_bytes = [group.total_byte_size for group in groups]
        self.group_rows = [group.num_rows for group in groups]
        leaves = iter(self._file.schema.column(number).path for number in range(metadata.num_columns))
        self._leaves = {field.name: list(zip(leaf_cells(field.type), leaves)) for field in self._schema}

    def about(self, group: int) -> str:
        """A description that differs from that of a rewritten group: the column offsets in the footer.

        The column statistics there may not be valid text.
        """
        described = self._file.metadata.row_group(group)
        columns = [described.column(number) for number in range(described.num_columns)]
        return f"{described.num_rows} rows, {[(c.data_page_offset, c.total_compressed_size) for c in columns]}"

    def type_of(self, column: str) -> Any:
        """The type of a column."""
        return self._schema.field(column).type

    def has_values(self, group: int, column: str) -> bool:
        """Whether a column may have a value in a group, by the statistics in the footer."""
        return not all(
            leaf.is_stats_set and leaf.statistics.has_null_count and leaf.statistics.null_count == leaf.num_values
            for leaf in self._described(group, [path for _, path in self._leaves[column]])
        )

    def texts(self, group: int, row: int, columns: Sequence[str]) -> dict[str, Any]:
        """The values of a row without their cells. Raises ValueError and OSError."""
        leaves = [path for name in columns for is_cell, path in self._leaves[name] if not is_cell]
        return self._row(group, row, leaves).to_pylist()[0] if leaves else {}

    def cells(self, group: int, row: int, column: str) -> Any:
        """An array of the row's value of a column, with its cells alone. Raises ValueError and OSError."""
        return self._row(group, row, [path for is_cell, path in self._leaves[column] if is_cell]).column(0)

    def cell_bytes(self, group: int, columns: Sequence[str]) -> int:
        """Bytes of a group that are read for one cell of columns, at most."""
        leaves = [path for name in columns for is_cell, path in self._leaves[name] if is_cell]
        return sum(leaf.total_compressed_size for leaf in self._described(group, leaves))

    def _row(self, group: int, row: int, leaves: Sequence[str]) -> Any:
        return row_reader((*self._key, group, *leaves), lambda: self._reader(group, leaves)).row(row)

    def _reader(self, group: int, leaves: Sequence[str]) -> RowReader:
        rows = self.group_rows[group]
        size = sum(leaf.total_uncompressed_size for leaf in self._described(group, leaves))
        at_once = min(max(BATCH_BYTES * rows // max(size, 1), 1), BATCH_ROWS)

        def batches(number: int | None) -> Iterator[Any]:
            return self._file.iter_batches(number or at_once, [group], leaves, use_threads=False)

        # pyarrow may hold a group's only page, and a buffer for each leaf.
        return RowReader(batches, rows, size + READ_BYTES * len(leaves))

    def _described(self, group: int, leaves: Sequence[str]) -> list[Any]:
        described = self._file.metadata.row_group(group)
        columns = (described.column(number) for number in range(described.num_columns))
        return [column for column in columns if column.path_in_schema in leaves]


def _footer(path: str) -> Any:
    """The metadata of a Parquet file. pyarrow reads at least 64 KiB for it, and rows may be read from many files."""
    import pyarrow.parquet

    size = remote.size(path)
    with remote.open_file(path, piece=0) as file:
        file.seek(max(size - FOOTER_BYTES, 0))
        tail = file.read(FOOTER_BYTES)
        needed = int.from_bytes(tail[-8:-4], "little") + 8
        if len(tail) < needed <= size:
            file.seek(size - needed)
            tail = file.read(needed)
    return pyarrow.parquet.read_metadata(pyarrow.BufferReader(tail))


class _ArrowTable:
    """Groups are the record batches of an Arrow stream or file."""

    def __init__(self, path: str):
        import pyarrow

        self._is_remote = remote.is_remote(path)
        source = pyarrow.PythonFile(remote.open_file(path), "r") if self._is_remote else pyarrow.memory_map(path)
        try:
            reader = pyarrow.ipc.open_file(source)
            self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        except pyarrow.ArrowInvalid:
            source.seek(0)
            reader = pyarrow.ipc.open_stream(source)
            self._batches = list(reader)
        self._schema = reader.schema
        self.columns = self._schema.names
        self.group_bytes = [batch.nbytes for batch in self._batches]
        self.group_rows = [batch.num_rows for batch in self._batches]

    def about(self, group: int) -> str:
        return f"{self._batches[group].num_rows} rows, {self.group_bytes[group]} bytes"

    def type_of(self, column: str) -> Any:
        return self._schema.field(column).type

    def has_values(self, group: int, column: str) -> bool:
        return self._batches[group].column(column).null_count < self.group_rows[group]

    def texts(self, group: int, row: int, columns: Sequence[str]) -> dict[str, Any]:
        return {name: values_of(self.cells(group, row, name), no_cells)[0] for name in columns}

    def cells(self, group: int, row: int, column: str) -> Any:
        """An array of the row's value of a column. A mapped file is read where its values are looked at."""
        return self._batches[group].column(column).slice(row, 1)

    def cell_bytes(self, group: int, columns: Sequence[str]) -> int:
        """As in a Parquet table: none of a mapped file; a file of a store is read completely when it is opened."""
        return self.group_bytes[group] if self._is_remote else 0


Table = _ParquetTable | _ArrowTable


def version_of(table: Table, group: int) -> str:
    """A digest that differs from that of a rewritten group."""
    return hashlib.blake2b(table.about(group).encode(), digest_size=8).hexdigest()
