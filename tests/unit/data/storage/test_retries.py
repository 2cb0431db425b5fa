"""Stores that fail temporarily: no sample is quarantined for it, and an error names a file that stays unreadable."""

from __future__ import annotations

import dataclasses
import errno

import numpy as np
import pytest

from longvita.data.document import DocumentReader
from longvita.data.errors import DataError, MediaError, Reason
from longvita.data.index.build import IndexSettings
from longvita.data.index.process_pool import IndexProcessPool
from longvita.data.index.store import IndexJob, load_index
from longvita.data.media import pyav_reader
from longvita.data.media.pictures import picture_file
from longvita.data.mix.catalog import build_catalog, make_template
from longvita.data.storage import remote, retries
from tests.unit.data.material import conversation, data_config, write_jsonl

SAMPLES = [
    conversation("one"),
    conversation("<image>two", images=["one.png"]),
    conversation("<video>three", videos=["clip.mp4"]),
]


class Failing:
    """Stands for a function that opens: its first `failures` calls raise the error of a file server that is away."""

    def __init__(self, real, failures, error=None):
        self.real, self.failures, self.calls = real, failures, 0
        self.error = error or OSError(errno.ESTALE, "Stale file handle")

    def __call__(self, *arguments, **options):
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return self.real(*arguments, **options)


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The seconds of the waits, which are not slept."""
    seconds = []
    monkeypatch.setattr(retries.time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def reader_and_requests(folder):
    config = data_config(folder, {"a": {"data_paths": [write_jsonl(folder / "a.jsonl", SAMPLES).name]}})
    template = make_template(config)
    catalog = build_catalog(config, template, config.data.dataset)
    requests = [catalog.request(number) for number in range(len(SAMPLES))]
    whole = [dataclasses.replace(request, wanted=tuple(range(request.num_tiles))) for request in requests]
    return DocumentReader(template, catalog.settings), whole


def job_of(folder, template, samples):
    path = write_jsonl(folder / "a.jsonl", samples)
    settings = IndexSettings(str(folder / "media"))
    return path, IndexJob(IndexProcessPool(template, 0), settings, folder / "cache")


def test_a_data_file_that_fails_for_a_moment_is_read_again(reader_and_requests, monkeypatch, waits):
    reader, requests = reader_and_requests
    expected = reader.read(requests[0]).encoded.input_ids
    monkeypatch.setattr(remote, "open", Failing(open, 2), raising=False)
    np.testing.assert_array_equal(reader.read(requests[0]).encoded.input_ids, expected)
    assert waits == list(retries.WAITS[:2])


def test_a_data_file_that_stays_away_ends_the_run_by_name(reader_and_requests, monkeypatch, waits):
    reader, requests = reader_and_requests
    monkeypatch.setattr(remote, "open", Failing(open, 99), raising=False)
    with pytest.raises(RuntimeError, match=r"a\.jsonl:2 cannot be read any more .*Stale file handle.* after 4 tries"):
        reader.read(requests[1])
    assert waits == list(retries.WAITS)


@pytest.mark.parametrize("number, owner, name", [(1, picture_file, "read_at"), (2, pyav_reader, "open_container")])
def test_a_medium_that_fails_for_a_moment_is_decoded_again(
    reader_and_requests, monkeypatch, waits, number, owner, name
):
    reader, requests = reader_and_requests
    expected = reader.read(requests[number]).pixels
    monkeypatch.setattr(owner, name, Failing(getattr(owner, name), 2))
    np.testing.assert_array_equal(reader.read(requests[number]).pixels, expected)
    assert waits == list(retries.WAITS[:2])


@pytest.mark.parametrize("number, owner, name", [(1, picture_file, "read_at"), (2, pyav_reader, "open_container")])
def test_a_medium_that_stays_away_costs_its_sample(reader_and_requests, monkeypatch, waits, number, owner, name):
    reader, requests = reader_and_requests
    monkeypatch.setattr(owner, name, Failing(getattr(owner, name), 99))
    with pytest.raises(MediaError, match="Stale file handle"):
        reader.read(requests[number])
    assert waits == list(retries.WAITS)


def test_what_a_damaged_file_raises_is_not_tried_again(reader_and_requests, monkeypatch, waits):
    reader, requests = reader_and_requests
    monkeypatch.setattr(picture_file, "read_at", Failing(picture_file.read_at, 99, OSError("image file is truncated")))
    with pytest.raises(MediaError, match="truncated"):
        reader.read(requests[1])
    assert waits == []


def test_a_header_is_opened_again(folder, template, monkeypatch, waits):
    path, job = job_of(folder, template, SAMPLES)
    monkeypatch.setattr(picture_file, "read_at", Failing(picture_file.read_at, 3))
    index = load_index(path, job)
    assert (len(index), len(index.quarantined)) == (3, 0)
    assert waits == list(retries.WAITS)


def test_one_header_that_stays_away_costs_its_sample(folder, template, monkeypatch):
    path, job = job_of(folder, template, [SAMPLES[1], *SAMPLES, *SAMPLES])
    tries = len(retries.WAITS) + 1
    monkeypatch.setattr(picture_file, "read_at", Failing(picture_file.read_at, 2 * tries))
    index = load_index(path, job)
    assert [(entry.line, entry.reason) for entry in index.quarantined] == [
        (1, Reason.BROKEN_PICTURE),
        (3, Reason.BROKEN_PICTURE),
    ]


def test_a_store_that_stays_away_ends_the_pass_which_resumes_later(folder, template, monkeypatch):
    path, job = job_of(folder, template, [SAMPLES[1]] * 5)
    with monkeypatch.context() as patch:
        patch.setattr(picture_file, "read_at", Failing(picture_file.read_at, 999))
        with pytest.raises(DataError, match=r"a\.jsonl.*Stale file handle.*3 samples in a row can't be read"):
            load_index(path, job)
    assert len(load_index(path, job)) == 5


def test_ffmpegs_own_io_error_is_the_files():
    import av

    with pytest.raises(av.error.OSError) as caught:
        av.open("/proc/self/mem")
    assert caught.value.errno == errno.EIO
    assert retries.store_failure(caught.value) is None
    assert retries.store_failure(OSError(errno.EIO, "disk")) is not None
