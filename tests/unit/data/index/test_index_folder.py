"""The folder of an index: what it depends on, and when what is in it is kept."""

from __future__ import annotations

import errno
import itertools
import os

import pytest

from longvita.data.index import build, editions, store
from longvita.data.index.build import IndexSettings
from longvita.data.index.process_pool import IndexProcessPool
from longvita.data.index.store import IndexJob, load_index
from longvita.data.storage import retries
from tests.unit.data.index.test_index import GOOD, assert_equal, job_of
from tests.unit.data.material import write_jsonl


def raise_next(errors):
    for error in errors:
        raise error


def test_differs_by_the_place_of_a_relative_media_root(tmp_path, template, monkeypatch):
    folders = []
    for project in ("one", "two"):
        (tmp_path / project).mkdir()
        for here, root in (("", f"{project}/images"), (project, "images"), (project, "./images/")):
            monkeypatch.chdir(tmp_path / here)
            job = IndexJob(IndexProcessPool(template, 0), IndexSettings(root), tmp_path / "cache")
            folders.append(job.folder(str(tmp_path / "a.jsonl")))
    assert len(set(folders[:3])) == len(set(folders[3:])) == 1
    assert folders[0] != folders[3]


@pytest.mark.parametrize("root", ["s3://bucket/images", "memory://images"])
def test_does_not_differ_by_the_current_folder_for_a_remote_media_root(tmp_path, template, monkeypatch, root):
    job = IndexJob(IndexProcessPool(template, 0), IndexSettings(root), tmp_path / "cache")
    here = job.folder(str(tmp_path / "a.jsonl"))
    monkeypatch.chdir(tmp_path)
    assert job.folder(str(tmp_path / "a.jsonl")) == here


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ESTALE])
def test_whose_disk_fails_is_kept(folder, template, monkeypatch, number):
    path, job = write_jsonl(folder / "a.jsonl", GOOD), job_of(folder, template)
    first = load_index(path, job)
    failures = itertools.repeat(OSError(number, os.strerror(number)), 2)
    monkeypatch.setattr(retries, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(build, "index_part", lambda *_: pytest.fail("indexed again"))
    real = editions._column
    monkeypatch.setattr(editions, "_column", lambda file: raise_next(failures) or real(file))
    assert_equal(store.open_index(path, job), first)
    monkeypatch.setattr(editions, "_column", lambda _: raise_next(itertools.repeat(OSError(number, "failed"))))
    with pytest.raises(OSError, match="failed"):
        store.open_index(path, job)
    assert (job.folder(str(path)) / editions.META).exists()


def test_that_another_process_rebuilt_is_not_rebuilt_again(folder, template, monkeypatch):
    path, job = write_jsonl(folder / "a.jsonl", GOOD), job_of(folder, template)
    first = load_index(path, job)
    failures = itertools.repeat(ValueError("cut"), 1)
    monkeypatch.setattr(build, "index_part", lambda *_: pytest.fail("indexed again"))
    real = editions._column
    monkeypatch.setattr(editions, "_column", lambda file: raise_next(failures) or real(file))
    assert_equal(store.open_index(path, job), first)
