"""Parquet and Arrow tables, as on the Hugging Face Hub and from `datasets`: one sample for each row."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from longvita.data.errors import DataError, Reason, SampleError
from longvita.data.formats.base import Part, Place
from longvita.data.formats.record import COLUMNS, NESTED, FormatOptions, record_sample
from longvita.data.formats.tables import Table, holds_bytes, is_light, open_table
from longvita.data.sample import Sample
from longvita.data.storage import remote


class Parquet:
    """The offset of a place is a row group, its size the row in that group. Parts count row groups."""

    name = "parquet"

    def __init__(self, options: FormatOptions):
        self.options = options

    def parts(self, path: str, part_bytes: int) -> list[Part]:
        """Row groups, joined until they have `part_bytes`. Raises DataError for a column that does not exist."""
        table = open_table(path)
        self._columns(table, path)
        bounds, part_size = [0], 0
        for group, size in enumerate(table.group_bytes, start=1):
            part_size += size
            if part_size >= part_bytes or group == len(table.group_bytes):
                bounds.append(group)
                part_size = 0
        return [Part(start, stop) for start, stop in itertools.pairwise(bounds)]

    def digest(self, path: str, part: Part) -> str:
        """Digest of the file's size, time and metadata of the groups: such a file never grows in place."""
        table = open_table(path)
        groups = range(part.start, min(part.end, len(table.group_bytes)))
        about = [remote.state(path), *(table.about(group) for group in groups)]
        return hashlib.blake2b(json.dumps(about).encode(), digest_size=16).hexdigest()

    def samples(self, path: str, part: Part) -> Iterator[tuple[Place, Sample | SampleError | None]]:
        """One sample for each row; in a damaged group, an error for each row from the damage on.

        Columns that are not used are read too if they are small, so that what a sample leaves out is named.
        """
        table, numbers = open_table(path), itertools.count(1)
        needed = self._columns(table, path)
        others = [name for name in table.columns if name not in needed]
        columns = [*needed, *(name for name in others if is_light(table.type_of(name)))]
        for group in range(part.start, part.end):
            read, unread = 0, self._unread(table, group, columns)
            try:
                for row in table.rows(group, columns):
                    read += 1
                    yield Place(group, read - 1, next(numbers)), self._sample(row, needed, unread)
            except (OSError, ValueError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # The store failed; pyarrow's errors for damaged pages have no errno.
                lost = SampleError(Reason.INVALID_SAMPLE, f"group {group} can't be read from row {read} on: {error}")
                for row_number in range(read, table.group_rows[group]):
                    yield Place(group, row_number, next(numbers)), lost

    def read(self, path: str, place: Place, with_media: bool = True) -> Sample:
        """The sample of a row. The rows before it in its group are read too, so small groups are faster."""
        table = open_table(path)
        if place.offset < len(table.group_bytes):
            needed = self._columns(table, path)
            rows = table.rows(place.offset, needed)
            for row in itertools.islice(rows, place.size, place.size + 1):
                sample = self._sample(row, needed, {})
                if isinstance(sample, SampleError):
                    raise sample
                return sample
        raise SampleError(Reason.INVALID_SAMPLE, f"there is no row {place.size} of group {place.offset}")

    def _unread(self, table: Table, group: int, columns: list[str]) -> dict[str, Any]:
        """For each column that is not read and has a value in a group, a value of its kind, for all rows."""
        names = [name for name in table.columns if name not in columns and table.has_values(group, name)]
        return {name: b"" if holds_bytes(table.type_of(name)) else ... for name in names}

    def _sample(self, row: Any, needed: list[str], unread: Mapping[str, Any]) -> Sample | SampleError:
        try:
            return record_sample({**unread, **_values(row, needed)}, self.options)
        except SampleError as error:
            return error
        except ValueError as error:  # Such as broken UTF-8.
            return SampleError(Reason.INVALID_SAMPLE, f"the row can't be read: {error}")

    def _columns(self, table: Table, path: str) -> list[str]:
        """Names of the columns to read. Raises DataError if a configured one does not exist, or if there is none."""
        # A dot leads into a column.
        tops = [name if name in table.columns else name.split(".")[0] for _, name in self.options.columns]
        missing = [name for name in tops if name not in table.columns and NESTED not in table.columns]
        names = [name for purpose in COLUMNS for name in self.options.names_of(purpose)]
        wanted = {*names, *(name.split(".")[0] for name in names), NESTED}
        found = [name for name in table.columns if name in wanted]
        if missing or not found:
            which = f"no column {missing[0]!r}" if missing else "no column with messages or captions"
            raise DataError(
                f"data file {path} has {which}; it has {', '.join(table.columns)}: see the source's columns "
                f"({', '.join(COLUMNS)})"
            )
        return found


def _values(row: Any, needed: list[str]) -> dict[str, Any]:
    """The values of a row; the needed ones alone if another one is broken. Raises ValueError."""
    try:
        return row.to_pylist()[0]
    except ValueError:
        return row.select(needed).to_pylist()[0]
