"""The formats of data files, by name. A new one is a module here and a line in FORMATS."""

from __future__ import annotations

from longvita.data.formats.base import Format
from longvita.data.formats.jsonl import Jsonl

FORMATS: dict[str, Format] = {format.name: format for format in (Jsonl(),)}
