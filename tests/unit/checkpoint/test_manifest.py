import json

import pytest
import torch.distributed as dist

from longvita.checkpoint import manifest
from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.manifest import find_damage
from longvita.checkpoint.resume import newest_intact
from longvita.checkpoint.step_folders import folders_to_remove, step_folder, step_folders, step_of


@pytest.fixture
def world_of_one(tmp_path_factory):
    """A process group of this process alone."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def make(root, step):
    folder = step_folder(root, step)
    (folder / "inner").mkdir(parents=True)
    (folder / "a.distcp").write_bytes(bytes(range(256)) * 40)
    (folder / "inner" / "b").write_text("text")
    manifest.write_manifest(folder, {})
    return folder


def test_an_intact_folder_has_no_damage(tmp_path):
    folder = make(tmp_path, 100)
    assert folder.name == "step_00000100"
    assert find_damage(folder) == []
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert set(files) == {"a.distcp", "inner/b"}
    assert files["inner/b"]["bytes"] == 4
    assert not list(folder.glob("*.partial")) and not list(folder.glob(".*"))


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[5000] ^= 4
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (flip_bit, "does not match its checksum"),
        (truncate, "has 10239 bytes instead of 10240"),
        (lambda path: path.unlink(), "cannot be read (No such file or directory)"),
        (lambda path: (path.parent / "manifest.json").unlink(), "never finished"),
        (lambda path: halve(path.parent / "manifest.json"), "cannot be read"),
    ],
    ids=["bit", "cut", "gone", "no manifest", "cut manifest"],
)
@pytest.mark.usefixtures("world_of_one")
def test_damage_is_found_and_the_checkpoint_before_it_used(tmp_path, harm, words, caplog):
    older, newer = make(tmp_path, 20), make(tmp_path, 100)
    assert newest_intact(tmp_path) == newer
    assert caplog.messages == []
    harm(newer / "a.distcp")
    assert newest_intact(tmp_path) == older
    (warning,) = caplog.messages
    assert "step_00000100" in warning and words in warning


@pytest.mark.usefixtures("world_of_one")
def test_all_damaged(tmp_path, caplog):
    truncate(make(tmp_path, 3) / "a.distcp")
    assert newest_intact(tmp_path) is None
    assert len(caplog.messages) == 1
    assert newest_intact(tmp_path / "absent") is None
    assert len(caplog.messages) == 1


def test_ranks_divide_the_files(tmp_path):
    folder = make(tmp_path, 1)
    truncate(folder / "a.distcp")
    assert len(find_damage(folder, 0, 2)) == 1
    assert find_damage(folder, 1, 2) == []


def test_folders_are_numbered(tmp_path):
    for step in (5, 100, 20, 123456789):
        step_folder(tmp_path, step).mkdir()
    (tmp_path / "step_5").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "step_00000007").touch()
    assert [step_of(folder) for folder in step_folders(tmp_path)] == [123456789, 100, 20, 5]


def test_old_checkpoints_are_removed_and_refused_later_ones_kept(tmp_path):
    folders = [step_folder(tmp_path, step) for step in (10, 20, 30, 40, 90)]
    gone = folders_to_remove(folders, newest=40, keep=2)
    assert sorted(step_of(folder) for folder in gone) == [10, 20]


def test_a_missing_or_damaged_manifest_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="never finished"):
        manifest.read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"files": {"a": {"bytes": "x"}}}')
    with pytest.raises(CheckpointError, match="cannot be read"):
        manifest.read_manifest(tmp_path)
