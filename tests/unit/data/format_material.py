"""Data files of every format with the same few samples, for the tests of formats."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from PIL import Image

from longvita.data.formats import make_format
from longvita.data.formats.base import Part, Place
from longvita.data.formats.record import NO_OPTIONS, FormatOptions
from longvita.data.media.media_file import EmbeddedMedia, MediaRef
from longvita.data.sample import Sample
from tests.unit.data.material import picture


def png(colour: str, side: int = 8) -> bytes:
    """A small picture file, different for each colour."""
    content = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(content, "png")
    return content.getvalue()


def photograph(kind: str = "jpeg") -> bytes:
    """A photograph of 60 x 40 pixels as a file."""
    content = io.BytesIO()
    picture("coffee").resize((60, 40)).save(content, kind)
    return content.getvalue()


def llava(question: str, answer: str = "yes", **media: Any) -> dict:
    """A sample in the form of LLaVA."""
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **media}


def write_tar(path: Path, members: Sequence[tuple[str, bytes | str]]) -> Path:
    """A tar archive of members in their order."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_parquet(path: Path, rows: Sequence[dict], rows_of_a_group: int = 2) -> Path:
    """A Parquet file of rows, in groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path, row_group_size=rows_of_a_group)
    return path


def write_arrow(path: Path, rows: Sequence[dict], rows_of_a_batch: int = 2) -> Path:
    """An Arrow stream, as `datasets` saves one."""
    table = pyarrow.Table.from_pylist(list(rows))
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_of_a_batch)
    return path


def write_csv(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    """A table with a header."""
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def write_index(tar: Path) -> Path:
    """An index file next to the archive, in the format of DALI's wds2idx."""
    groups: dict[str, list[str]] = {}
    with tarfile.open(tar) as archive:
        for member in archive:
            key, ending = member.name.split(".", 1)
            groups.setdefault(key, []).append(f"{ending} {member.offset_data} {member.size} {member.name}")
    lines = [" ".join(entries) for entries in groups.values()]
    index = tar.with_suffix(".idx")
    index.write_text("\n".join([f"v1.2 {len(lines)}", *lines]) + "\n")
    return index


def dump_json(path: Path, value: Any, **options: Any) -> Path:
    """A JSON file."""
    path.write_text(json.dumps(value, **options), encoding="utf-8")
    return path


def read_all(
    name: str, path: str | Path, part_bytes: int = 1 << 40, options: FormatOptions = NO_OPTIONS
) -> Iterator[tuple[Part, Place, Any]]:
    """Part, place and content of everything in a data file."""
    format = make_format(name, options)
    for part in format.parts(str(path), part_bytes):
        for place, content in format.samples(str(path), part):
            yield part, place, content


def samples_of(name: str, path: str | Path, options: FormatOptions = NO_OPTIONS) -> list[Sample]:
    """The samples of a data file that has nothing broken."""
    found = [content for _, _, content in read_all(name, path, options=options)]
    assert all(isinstance(content, Sample) for content in found), found
    return found


def embedded(media: Sequence[MediaRef]) -> list[Any]:
    """The bytes and the name of each picture or video that a data file holds; any other one as it is."""
    return [(ref.read(), ref.name) if isinstance(ref, EmbeddedMedia) else ref for ref in media]


def reasons_of(name: str, path: str | Path, options: FormatOptions = NO_OPTIONS) -> list[tuple[int, str]]:
    """Line and reason of all that is broken in a data file."""
    return [
        (place.line, str(content.reason))
        for _, place, content in read_all(name, path, options=options)
        if content is not None and not isinstance(content, Sample)
    ]
