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
        self._schema = self._file.schema_arrow
        self.columns = self._schema.names
        self.group_bytes = [group.total_byte_size for group in groups]
        self.group_rows = [group.num_rows for group in groups]

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
        described = self._file.metadata.row_group(group)
        leaves = [described.column(number) for number in range(described.num_columns)]
        own = [leaf for leaf in leaves if f"{leaf.path_in_schema}.".startswith(f"{column}.")]
        return not all(
            leaf.is_stats_set and leaf.statistics.has_null_count and leaf.statistics.null_count == leaf.num_values
            for leaf in own
        )

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

    def rows(self, group: int, columns: list[str]) -> Iterator[Any]:
        return _rows(self._batches[group].select(columns))


Table = _ParquetTable | _ArrowTable


def is_light(kind: Any) -> bool:
    """Whether the values of a type are small: numbers, texts and lists of texts."""
    from pyarrow import types

    inner = kind.value_type if types.is_list(kind) or types.is_large_list(kind) else kind
    is_text = types.is_string(inner) or types.is_large_string(inner)
    return is_text or (inner is kind and types.is_primitive(kind)) or types.is_null(kind)


def holds_bytes(kind: Any) -> bool:
    """Whether the values of a type are bytes, or structs or lists with some."""
    from pyarrow import types

    return (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or any(holds_bytes(kind.field(number).type) for number in range(kind.num_fields))
    )


def _rows(batch: Any) -> Iterator[Any]:
    return (batch.slice(number, 1) for number in range(batch.num_rows))
