"""A picture or video in a table, which is read when it is opened."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import override

from longvita.data.formats.table_values import Shape, cells_in, filled, scalars, shape_of, values_of
from longvita.data.formats.tables import Table, open_table, version_of
from longvita.data.media.media_file import EmbeddedMedia


@dataclass(frozen=True)
class TableCell(EmbeddedMedia):
    """The bytes value at a place of a table. Two of one row are equal if their names and bytes are."""

    path: str
    """Path or address of the table."""
    group: int
    row: int
    """Row of the group."""
    column: str = field(compare=False)
    """Name of the column, which may hold several."""
    position: int = field(compare=False)
    """Position among the cells of that column in the row."""
    number: int
    """Number of its bytes among those of the row."""
    version: str
    """Differs if the group was written again."""
    name: str = ""

    @override
    def read(self) -> bytes:
        table = open_table(self.path)
        if self.group >= len(table.group_rows) or version_of(table, self.group) != self.version:
            raise ValueError(f"{self.path} changed; start again, which rebuilds the index")
        array = table.cells(self.group, self.row, self.column)
        (value,) = values_of(array, scalars)
        found = next(itertools.islice(cells_in(array.type, value), self.position, None))
        return found.as_py()

    @override
    def unique_name(self) -> list:
        return [self.name, self.group, self.row, self.number, self.version]

    @override
    def place(self) -> tuple[str, str]:
        return self.path, str(self.unique_name())


@dataclass(frozen=True)
class TableRow:
    """A row of a table."""

    table: Table
    path: str
    group: int
    number: int
    """Its number in the group."""

    def shapes(self, columns: Sequence[str]) -> dict[str, Shape]:
        """Read the shapes of columns that may hold cells. Raises ValueError and OSError."""
        numbers: dict[bytes, int] = {}
        shapes = {}
        for name in columns:
            array = self.table.cells(self.group, self.number, name)
            (value,) = values_of(array, scalars)
            shapes[name] = shape_of(array.type, value, lambda cell: numbers.setdefault(cell.as_py(), len(numbers)))
        return shapes

    def values(self, columns: Sequence[str], shapes: Mapping[str, Shape]) -> dict[str, Any]:
        """Read the values of columns, with unread cells in those that `shapes` names. Raises ValueError and OSError."""
        values = self.table.texts(self.group, self.number, columns)
        return values | {name: self._filled(name, values.get(name), shape) for name, shape in shapes.items()}

    def _filled(self, column: str, value: Any, shape: Shape) -> Any:
        version, positions = version_of(self.table, self.group), itertools.count()

        def cell(number: int) -> TableCell:
            return TableCell(self.path, self.group, self.number, column, next(positions), number, version)

        return filled(self.table.type_of(column), value, shape, cell)
