"""Requests to an object store for the samples of a WebDataset archive.

The part of data.py on archives: `webdataset_requests_a_sample`, requests to read the text and the picture of a sample
of an open index; `webdataset_requests_a_sample_by_members`, the same if each member is opened and read by itself;
`webdataset_bytes_over_members`, bytes that are transferred divided by those of the members. They are counted, not
timed.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from counting_store import CountingStore
from data_media_material import write_pictures

from longvita.data.formats import read_samples
from longvita.data.formats.record import NO_OPTIONS
from longvita.data.formats.webdataset import WebDataset
from longvita.data.media.media_file import read_bytes
from longvita.data.storage import remote

SAMPLES = 20


def archive_figures(folder: Path) -> dict[str, float]:
    """All results, for an archive of photographs with their texts."""
    archive_file = _write_archive(folder)
    path = CountingStore.address(archive_file)
    places = [place for place, _ in read_samples(path, None, NO_OPTIONS)]
    CountingStore.reset()
    for place in places:
        for picture in WebDataset(NO_OPTIONS).read(path, place).images:
            read_bytes(picture)
    ours, transferred = CountingStore.requests(), CountingStore.bytes_read()
    with tarfile.open(archive_file) as archive:
        members = archive.getmembers()
    CountingStore.reset()
    for member in members:
        with remote.open_file(path, member.size) as file:
            file.seek(member.offset_data)
            file.read(member.size)
    return {
        "webdataset_requests_a_sample": ours / SAMPLES,
        "webdataset_requests_a_sample_by_members": CountingStore.requests() / SAMPLES,
        "webdataset_bytes_over_members": transferred / sum(member.size for member in members),
    }


def _write_archive(folder: Path) -> Path:
    path = folder / "photographs.tar"
    with tarfile.open(path, mode="w") as archive:
        for number, name in enumerate(write_pictures(folder, SAMPLES)):
            text = json.dumps({"question": "What is shown?", "answer": f"Photograph {number}."}).encode()
            info = tarfile.TarInfo(f"{number:06}.json")
            info.size = len(text)
            archive.add(folder / name, f"{number:06}.jpg")
            archive.addfile(info, io.BytesIO(text))
    return path
