"""Read rows of row groups one by one and keep the last ones: a group is read once for several rows of it."""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Any

KEPT_BYTES = 128 << 20
"""Most bytes of rows and of open groups that are kept in a process, except those of the group that was read last."""
KEPT_READERS = 64
"""Most groups, or columns of them, that are kept in a process."""

Batches = Callable[[int | None], Iterator[Any]]
"""Opens the record batches of a group, of as many rows as given, or as its memory allows."""


class RowReader:
    """The rows of some columns of one group, read from its first row on; a row before the kept ones reads it again."""

    def __init__(self, batches: Batches, rows: int, open_bytes: int):
        """rows: of the group; open_bytes: what pyarrow may hold until its last row is read."""
        self._open, self._rows, self._open_bytes = batches, rows, open_bytes
        self._restart()

    @property
    def size(self) -> int:
        """Most bytes that it holds."""
        return self._kept_bytes + (self._open_bytes if self._end < self._rows else 0)

    def row(self, number: int) -> Any:
        """Return a row as a record batch. Raises ValueError and OSError: from a damaged row on, always the same one."""
        if number < self._first:
            self._restart()
        while self._end <= number < self._rows:
            self._read_batch()
        position = number - self._first
        for batch in self._kept:
            if position < batch.num_rows:
                return batch.slice(position, 1)
            position -= batch.num_rows
        raise ValueError(f"there is no row {number}")

    def _restart(self) -> None:
        self._batches = self._open(None)
        self._kept: deque[Any] = deque()
        self._first = self._end = 0
        self._kept_bytes = 0
        self._is_by_row = False
        self._damage: Exception | None = None

    def _read_batch(self) -> None:
        if self._damage is not None:
            raise self._damage
        try:
            batch = next(self._batches, None)
        except (OSError, ValueError) as error:
            self._after(error)
            return
        if batch is None:
            raise ValueError(f"it has {self._end} of {self._rows} rows")
        self._keep(batch)
        if self._end == self._rows:
            self._batches = iter(())  # Closes the group.

    def _keep(self, batch: Any) -> None:
        """Keep a batch, and drop the first ones if they are too large together."""
        self._kept.append(batch)
        self._end += batch.num_rows
        self._kept_bytes += batch.nbytes
        while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
            first = self._kept.popleft()
            self._first += first.num_rows
            self._kept_bytes -= first.nbytes

    def _after(self, error: OSError | ValueError) -> None:
        """Read the rows before a damaged one one by one; raise the error at that row, and if the store failed."""
        if isinstance(error, OSError) and error.errno is not None:
            self._restart()  # pyarrow's errors for damaged pages have no errno.
            raise error
        if self._is_by_row:
            self._damage = error
            raise error
        self._is_by_row = True
        self._batches = itertools.islice(self._open(1), self._end, None)


_readers: OrderedDict[Hashable, RowReader] = OrderedDict()


def row_reader(key: Hashable, new: Callable[[], RowReader]) -> RowReader:
    """Return the reader of a group's columns that `key` names; those that were not used for long are closed."""
    reader = _readers.pop(key, None) or new()
    _readers[key] = reader
    while len(_readers) > KEPT_READERS or (
        len(_readers) > 1 and sum(one.size for one in _readers.values()) > KEPT_BYTES
    ):
        _readers.popitem(last=False)
    return reader
