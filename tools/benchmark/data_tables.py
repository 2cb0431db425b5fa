"""Bytes that are read for one sample of a Parquet file with row groups of 100 rows of 300 kB: data.py's part on tables.

`parquet_bytes_over_sample`: bytes read from the file for the text of a random sample, of which a rank decodes no tile,
divided by the bytes of a sample in the file. `parquet_bytes_over_sample_with_tiles`: the same for a sample whose tiles
are decoded. Nothing is kept between samples: each opens the file again.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from counting_store import CountingStore
from data_media_material import PICTURES, make_config, photograph

from longvita.data.document import DocumentReader, DocumentRequest, media_settings
from longvita.data.formats import row_reader, tables
from longvita.data.mix.catalog import build_catalog, make_template

ROWS, ROWS_OF_A_GROUP, ROW_BYTES = 800, 100, 300_000
SAMPLES = 200
WORDS = 150
"""Words of an answer."""


def table_figures(folder: Path) -> dict[str, float]:
    """Figures of each kind of table."""
    rows = pyarrow.Table.from_pylist(make_rows(np.random.default_rng(0)))
    pyarrow.parquet.write_table(rows, folder / "rows.parquet", row_group_size=ROWS_OF_A_GROUP)
    return bytes_over_sample(folder, "parquet")


def make_rows(random: np.random.Generator) -> list[dict]:
    """Rows in the form of LLaVA-OneVision. The bytes after a JPEG file's end make it as large as a photograph."""
    pictures = [_jpeg(name) for name in PICTURES]
    words = ["".join(map(chr, random.integers(97, 123, random.integers(2, 10)))) for _ in range(5000)]
    rows = []
    for number in range(ROWS):
        picture = pictures[number % len(pictures)]
        answer = " ".join(random.choice(words, WORDS))
        turns = [{"from": "human", "value": "<image>\nwhat is this?"}, {"from": "gpt", "value": answer}]
        content = picture + random.bytes(ROW_BYTES - len(picture))
        rows.append({"id": str(number), "image": {"bytes": content, "path": f"{number}.jpg"}, "conversations": turns})
    return rows


def bytes_over_sample(folder: Path, kind: str) -> dict[str, float]:
    """The two figures of the file rows.KIND."""
    config = make_config(folder, {"rows": {"data_paths": [CountingStore.address(folder / f"rows.{kind}")]}}, 16384, 0)
    template = make_template(config)
    catalog = build_catalog(config, template, config.data.dataset)
    reader = DocumentReader(template, media_settings(config))
    chosen = np.random.default_rng(1).choice(len(catalog.lengths), SAMPLES, replace=False)
    requests = [catalog.request(sample) for sample in chosen]
    sample_bytes = (folder / f"rows.{kind}").stat().st_size / ROWS
    wanted = [dataclasses.replace(request, wanted=(0,)) for request in requests]
    return {
        f"{kind}_bytes_over_sample": bytes_of_one(reader, requests) / sample_bytes,
        f"{kind}_bytes_over_sample_with_tiles": bytes_of_one(reader, wanted) / sample_bytes,
    }


def bytes_of_one(reader: DocumentReader, requests: Sequence[DocumentRequest]) -> float:
    """Mean bytes read for a request with nothing kept of the others."""
    CountingStore.reset()
    for request in requests:
        tables._open.cache_clear()
        row_reader._readers.clear()
        reader.read(request)
    return CountingStore.bytes_read() / len(requests)


def _jpeg(name: str) -> bytes:
    content = io.BytesIO()
    photograph(name).resize((600, 400)).save(content, "jpeg")
    return content.getvalue()
