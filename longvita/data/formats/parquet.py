"""Parquet and Arrow tables, as on the Hugging Face Hub and from `datasets`: one sample for each row."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from longvita.data.errors import DataError, Reason, SampleError
from longvita.data.formats.base import Part, Place
from longvita.data.formats.dotted import missing_name
from longvita.data.formats.record import COLUMNS, NESTED, FormatOptions, record_sample
from longvita.data.formats.table_cells import TableRow
from longvita.data.formats.table_values import Shape, holds_bytes, holds_cells, is_light, names_in, type_at
from longvita.data.formats.tables import Table, open_table
from longvita.data.formats.wrong_format import wrong_format
from longvita.data.sample import Sample
from longvita.data.storage import remote
from longvita.errors import shorten

MAX_SHAPE = 500
"""Longest text of a row's shape in the index, characters; a row with a longer one is read with its pictures."""


class Parquet:
    """The offset of a place is a row group, its size the row in that group. Parts count row groups."""

    name = "parquet"

    def __init__(self, options: FormatOptions):
        self.options = options

    def problem(self, path: str) -> str | None:
        """What the file's beginning shows, or the reader says."""
        found = wrong_format(path, "arrow" if path.endswith(".arrow") else self.name)
        if found is None:
            try:
                open_table(path)
            except DataError as error:
                return str(error)
        return found

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
        """One sample for each row; an error for each row from a damaged one on, to the end of its group.

        Columns that are not used are read too if they are small, so that what a sample leaves out is named.
        """
        table, numbers = open_table(path), itertools.count(1)
        needed = self._columns(table, path)
        others = [name for name in table.columns if name not in needed and is_light(table.type_of(name))]
        with_cells = _with_cells(table, needed)
        for group in range(part.start, part.end):
            unread = self._unread(table, group, [*needed, *others])
            for number in range(table.group_rows[group]):
                row, shapes = TableRow(table, path, group, number), dict[str, Shape]()
                sample: Sample | SampleError
                try:
                    with _damage(row):
                        shapes |= row.shapes(with_cells)
                        sample = record_sample({**unread, **_values(row, needed, others, shapes)}, self.options)
                except SampleError as error:
                    sample = error
                yield Place(group, number, next(numbers), shape=_shape_text(shapes)), sample

    def read(self, path: str, place: Place, with_media: bool = True) -> Sample:
        """The sample of a row. The texts before it in its group are read too; pictures and videos when opened."""
        table = open_table(path)
        if place.offset >= len(table.group_rows) or place.size >= table.group_rows[place.offset]:
            raise SampleError(Reason.INVALID_SAMPLE, f"there is no row {place.size} of group {place.offset}")
        row, needed = TableRow(table, path, place.offset, place.size), self._columns(table, path)
        with _damage(row):
            shapes = json.loads(place.shape) if place.shape else row.shapes(_with_cells(table, needed))
            return record_sample(row.values(needed, shapes), self.options)

    def read_ratio(self, path: str, samples: Mapping[int, int]) -> float:
        """Bytes read for the pictures of one sample divided by the mean bytes of a sample's pictures.

        A group's pictures are read from its first row on, so this is the most, for the samples of a mean place a half.
        samples: for each group, the number of its samples with pictures or videos.
        """
        table = open_table(path)
        columns = _with_cells(table, self._columns(table, path))
        sizes = {group: table.cell_bytes(group, columns) for group in samples}
        return sum(size * samples[group] for group, size in sizes.items()) / max(sum(sizes.values()), 1)

    def _unread(self, table: Table, group: int, columns: list[str]) -> dict[str, Any]:
        """For each column that is not read and has a value in a group, a value of its kind, for all rows."""
        names = [name for name in table.columns if name not in columns and table.has_values(group, name)]
        return {name: b"" if holds_bytes(table.type_of(name)) else ... for name in names}

    def _columns(self, table: Table, path: str) -> list[str]:
        """Names of the columns to read. Raises DataError if a configured one does not exist, or if there is none."""
        for purpose, name in self.options.columns:
            if name not in table.columns and (missing := _missing(table, purpose, name)):
                raise DataError(f"data file {path}: {missing}")
        names = [name for purpose in COLUMNS for name in self.options.names_of(purpose)]
        wanted = {*names, *(name.split(".")[0] for name in names), NESTED}
        found = [name for name in table.columns if name in wanted]
        if not found:
            raise DataError(
                f"data file {path} has no column with messages or captions; it has "
                f"{shorten(', '.join(table.columns))}: see the source's columns ({', '.join(COLUMNS)})"
            )
        return found


def _missing(table: Table, purpose: str, name: str) -> str | None:
    """Describe why a table has no column or field of a name, with the fix; None if it has, or if its JSON text may."""
    steps, kind = name.split("."), _record_type(table)
    is_in_text = NESTED in table.columns and not names_in(table.type_of(NESTED)) and steps[0] not in table.columns
    if name in names_in(kind) or is_in_text:
        return None
    for number, step in enumerate(steps):
        names, kind = names_in(kind), type_at(kind, step)
        if kind is None:
            return missing_name(purpose, steps, number, names or ["values without names"])
    return None


def _record_type(table: Table) -> Any:
    """The type of a table's records: its columns, and the fields of NESTED."""
    import pyarrow

    kinds = {name: table.type_of(name) for name in table.columns}
    nested = kinds.get(NESTED)
    inner = {} if nested is None else {name: type_at(nested, name) for name in names_in(nested)}
    return pyarrow.struct(list({**inner, **kinds}.items()))


@contextlib.contextmanager
def _damage(row: TableRow) -> Iterator[None]:
    """Convert errors of damaged values, such as broken UTF-8, to SampleErrors; those of the store pass."""
    try:
        yield
    except SampleError:
        raise
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # The store failed; pyarrow's errors for damaged pages have no errno.
        raise SampleError(
            Reason.INVALID_SAMPLE, f"row {row.number} of group {row.group} can't be read: {shorten(error)}"
        ) from error


def _values(row: TableRow, needed: list[str], others: list[str], shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The values of a row; the needed ones alone if another one is broken. Raises ValueError and OSError."""
    try:
        return row.values([*needed, *others], shapes)
    except (OSError, ValueError):
        return row.values(needed, shapes)


def _with_cells(table: Table, columns: list[str]) -> list[str]:
    """The columns that may hold cells; JSON text as bytes is text."""
    return [name for name in columns if name != NESTED and holds_cells(table.type_of(name))]


def _shape_text(shapes: Mapping[str, Shape]) -> str:
    text = json.dumps(shapes, separators=(",", ":")) if shapes else ""
    return text if len(text) <= MAX_SHAPE else ""
