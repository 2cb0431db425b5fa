"""Remote stores: results equal to those of a local folder; fsspec is used for addresses only."""

from __future__ import annotations

import builtins
import errno
import sys

import pytest

from longvita.data.document import DocumentReader, media_settings
from longvita.data.errors import DataError
from longvita.data.formats.base import Format
from longvita.data.index.build import IndexSettings
from longvita.data.index.process_pool import IndexProcessPool
from longvita.data.index.store import IndexJob, load_index
from longvita.data.media.media_file import FilePart, opened
from longvita.data.mix.catalog import build_catalog, make_template
from longvita.data.storage import remote
from tests.unit.data.format_material import png, write_parquet, write_tar
from tests.unit.data.index.test_index import settings_of
from tests.unit.data.material import conversation, data_config, write_jsonl

FILES = {"a.jsonl": b"one", "deep/b.txt": b"three", "deep/er/c.txt": b"fifteen bytes...", "d1.tar": b"", "d2.tar": b""}


pytestmark = pytest.mark.usefixtures("memory")


@pytest.fixture(params=["local", "memory", "cached memory", "cached folder", "file"])
def root(request, tmp_path, memory):
    """The address of a folder that holds FILES."""
    for name, content in FILES.items():
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).write_bytes(content)
        memory.pipe(f"/x/{name}", content)
    return {
        "local": str(tmp_path / "x"),
        "memory": "memory://x",
        "cached memory": "filecache::memory://x",
        "cached folder": f"filecache::file://{tmp_path}/x",
        "file": f"file://{tmp_path}/x",
    }[request.param]


def test_reading(root):
    path = remote.join(root, "deep/er/c.txt")
    with remote.open_file(path) as file:
        file.seek(8)
        assert file.read(5) == b"bytes"
    assert remote.size(path) == 16
    assert [remote.exists(remote.join(root, name)) for name in ("deep", "a.jsonl", "none")] == [True, True, False]
    assert [remote.is_folder(remote.join(root, name)) for name in ("deep", "a.jsonl", "none")] == [True, False, False]
    with pytest.raises(FileNotFoundError):
        remote.open_file(remote.join(root, "none"))


def test_listing(root):
    assert remote.files_below(root) == sorted(FILES)
    assert remote.files_below(f"{root}/deep") == ["b.txt", "er/c.txt"]


@pytest.mark.parametrize(
    "pattern, names",
    [("*.tar", ["d1.tar", "d2.tar"]), ("d[2].tar", ["d2.tar"]), ("deep/*/*.txt", ["deep/er/c.txt"]), ("*.none", [])],
)
def test_patterns(root, pattern, names):
    found = [remote.join(root, match) for match in remote.matches(root, pattern)]
    assert found == [remote.join(root, name) for name in names]
    assert all(remote.exists(path) for path in found)


@pytest.mark.parametrize("name", ["a.jsonl", "deep"])
def test_a_state_lasts_until_a_file_changes(root, name, tmp_path, memory):
    path = remote.join(root, name)
    before = remote.state(path)
    assert remote.state(path) == before
    changed = "a.jsonl" if name == "a.jsonl" else "deep/er/c.txt"
    memory.pipe(f"/x/{changed}", b"changed, and longer than before")
    (tmp_path / "x" / changed).write_bytes(b"changed, and longer than before")
    assert remote.state(path) != before


def test_the_state_of_a_folder_depends_on_names(root, tmp_path, memory):
    path = remote.join(root, "deep")
    before = remote.state(path)
    memory.mv("/x/deep/b.txt", "/x/deep/d.txt")
    (tmp_path / "x" / "deep" / "b.txt").rename(tmp_path / "x" / "deep" / "d.txt")
    assert remote.state(path) != before


def test_pieces_are_read_and_no_more(memory, monkeypatch):
    memory.pipe("/x/big", bytes(range(256)) * 4096)
    asked = []
    real = type(memory.store["/x/big"]).read
    monkeypatch.setattr(
        type(memory.store["/x/big"]), "read", lambda self, size=-1: asked.append(size) or real(self, size)
    )
    with opened(FilePart("memory://x/big", 1000, 300)) as file:
        assert file.read() == (bytes(range(256)) * 8)[1000:1300]
    assert sum(asked) <= 2 * 300 + 600
    with remote.open_file("memory://x/big", 512) as file:
        file.seek(5000)
        assert file.read(10) == (bytes(range(256)) * 40)[5000:5010]
    assert max(asked) <= 512 + 300


@pytest.mark.parametrize(
    "root, path, whole",
    [
        ("/data", "a", "/data/a"),
        ("/data", "/b/a", "/b/a"),
        ("/data", "s3://b/a", "s3://b/a"),
        ("s3://b/c", "a/d", "s3://b/c/a/d"),
        ("s3://b/c/", "a", "s3://b/c/a"),
        ("s3://b", "/local/a", "/local/a"),
        ("memory://", "a", "memory://a"),
    ],
)
def test_joining(root, path, whole):
    assert remote.join(root, path) == whole


def test_a_store_whose_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(DataError, match=r"gs://bucket/a cannot be opened: .*gcsfs.*; fix: install that package"):
        remote.open_file("gs://bucket/a")
    with pytest.raises(DataError, match="nonsense://a cannot be opened: Protocol not known: nonsense"):
        remote.exists("nonsense://a")


def test_local_paths_do_without_fsspec(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *arguments, **options):
        if name.startswith("fsspec"):
            raise AssertionError("fsspec is imported")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    (tmp_path / "a").write_bytes(b"a")
    assert remote.open_file(str(tmp_path / "a")).read() == b"a"
    assert (remote.matches(str(tmp_path), "*"), remote.files_below(str(tmp_path))) == (["a"], ["a"])


class StoreError(Exception):
    """What a store's library raises."""


@pytest.mark.parametrize(
    "raised, number",
    [(StoreError("503"), errno.EIO), (TimeoutError(), errno.EIO), (OSError(errno.EBUSY, "x"), errno.EBUSY)],
)
def test_the_errors_of_a_store_are_os_errors(raised, number, memory, monkeypatch):
    memory.pipe("/x/a", b"content")

    def fail(*_arguments, **_options):
        raise raised

    file = remote.open_file("memory://x/a")
    monkeypatch.setattr(type(memory.store["/x/a"]), "read", fail)
    with pytest.raises(OSError) as caught:
        file.read(2)
    assert caught.value.errno == number
    monkeypatch.setattr(type(memory), "open", fail)
    with pytest.raises(OSError) as caught:
        remote.open_file("memory://x/a")
    assert caught.value.errno == number


def test_a_store_whose_package_is_missing_is_no_fault_of_the_file(folder, template, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    path = write_jsonl(folder / "a.jsonl", [conversation("<image>?", images=["one.png"])])
    settings = IndexSettings("gs://bucket")
    with pytest.raises(DataError, match="gcsfs"):
        load_index(path, IndexJob(IndexProcessPool(template, 0), settings, folder / "cache"))


def upload(memory, folder, *names):
    for name in names:
        memory.pipe(f"/mix/{name}", (folder / name).read_bytes())


def test_a_mix_at_an_address_is_read_as_the_local_one_is(folder, memory):
    samples = [conversation("<image>?", images=["wide.jpg"]), conversation("<video>?", videos=["clip.mp4"])]
    write_jsonl(folder / "a.jsonl", samples)
    write_tar(folder / "s-0.tar", [("1.png", png("red")), ("1.txt", "red")])
    write_tar(folder / "s-1.tar", [("1.png", png("blue")), ("1.txt", "blue")])
    write_parquet(folder / "t.parquet", [{"caption": "it", "image": png("gold")}])
    upload(memory, folder, "a.jsonl", "s-0.tar", "s-1.tar", "t.parquet", "media/wide.jpg", "media/clip.mp4")
    sources = {
        "lines": {"data_paths": ["a.jsonl"]},
        "shards": {"data_paths": ["s-{0..1}.tar"]},
        "tables": {"data_paths": ["*.parquet"]},
    }

    def documents(**places):
        config = data_config(folder, sources, **places)
        template = make_template(config)
        catalog = build_catalog(config, template, config.data.dataset)
        assert catalog.quarantined == []
        reader = DocumentReader(template, media_settings(config))
        for sample in range(len(catalog.lengths)):
            request = catalog.request(sample)
            yield reader.read(_with_all_tiles(request))

    local = list(documents())
    assert len(local) == 5
    for root in ("memory://mix", "filecache::memory://mix"):
        away = list(documents(data_root=root, media_root=f"{root}/media", index_cache=str(folder / root[:4])))
        assert [document.encoded.input_ids.tolist() for document in away] == [
            document.encoded.input_ids.tolist() for document in local
        ]
        assert all((one.pixels == other.pixels).all() for one, other in zip(away, local, strict=True))


def _with_all_tiles(request):
    import dataclasses

    return dataclasses.replace(request, wanted=tuple(range(request.num_tiles)))


def test_an_index_of_an_address_is_used_until_the_file_changes(folder, template, memory, monkeypatch):
    write_jsonl(folder / "a.jsonl", [conversation("one")])
    upload(memory, folder, "a.jsonl")
    job = IndexJob(IndexProcessPool(template, 0), settings_of(folder), folder / "cache")
    assert len(load_index("memory://mix/a.jsonl", job)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(Format, "samples", None)
        patch.setattr(IndexProcessPool, "index", None)
        assert len(load_index("memory://mix/a.jsonl", job)) == 1
    write_jsonl(folder / "a.jsonl", [conversation("one"), conversation("two")])
    upload(memory, folder, "a.jsonl")
    assert len(load_index("memory://mix/a.jsonl", job)) == 2
    with pytest.raises(DataError, match="memory://mix/none.jsonl does not exist"):
        load_index("memory://mix/none.jsonl", job)


def test_a_part_of_a_remote_file(memory):
    memory.pipe("/x/a.tar", b"0123456789")
    from longvita.data.media.media_file import read_bytes

    assert read_bytes(FilePart("memory://x/a.tar", 3, 4, "a")) == b"3456"
