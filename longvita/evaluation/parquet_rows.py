"""Parquet tables of data sets as rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longvita.evaluation.media_files import DataSetError


def read_rows(paths: Sequence[Path], columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of Parquet files, of some columns. Raises DataSetError for a file that is broken or lacks a column."""
    from pyarrow import ArrowException, parquet

    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            names = parquet.read_schema(path).names
            missing = [column for column in columns if column not in names]
            if missing:
                raise DataSetError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(names)}")
            rows += parquet.read_table(path, columns=list(columns)).to_pylist()
        except (ArrowException, OSError) as error:
            raise DataSetError(f"{path} cannot be read as Parquet: {error}; download it again") from error
    return rows
