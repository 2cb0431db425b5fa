import random
import zipfile

import pytest

from longvita.evaluation.data_set_files import DataSetError, MediaFiles


def test_files_are_found_unpacked_or_packed_and_never_written_outside(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "one.mp4").write_bytes(b"1")
    with zipfile.ZipFile(tmp_path / "videos_chunked_01.zip", "w") as archive:
        archive.writestr("data/two.mp4", b"22")
        archive.writestr("../../three.mp4", b"333")
        archive.writestr("__MACOSX/._four.mp4", b"4")
        archive.writestr("readme.txt", b"")
    files = MediaFiles(tmp_path, (".mp4",))
    assert [name in files for name in ("one", "two", "three", "four", "._four", "readme")] == [True] * 3 + [False] * 3
    assert files.path("one", "video") == tmp_path / "videos" / "one.mp4"
    for name, content in (("two", b"22"), ("three", b"333")):
        assert files.path(name, "video") == tmp_path / "video" / f"{name}.mp4"
        assert files.path(name, "video").read_bytes() == content
    assert sorted(path.name for path in (tmp_path / "video").iterdir()) == ["three.mp4", "two.mp4"]
    assert MediaFiles(tmp_path, (".mp4",)).path("two", "elsewhere") == tmp_path / "video" / "two.mp4"
    with pytest.raises(DataSetError, match="holds no file of four"):
        files.path("four", "video")


def test_broken_archives_are_reported(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK no more")
    with pytest.raises(DataSetError, match=r"a\.zip cannot be read.*download it again"):
        MediaFiles(tmp_path, (".mp4",))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_leaves_nothing_behind(tmp_path, compression):
    content = random.Random(1).randbytes(2000) + bytes(2000)
    for place in range(60, 1500, 240):
        folder = tmp_path / str(place)
        folder.mkdir()
        with zipfile.ZipFile(folder / "a.zip", "w", compression) as archive:
            archive.writestr("one.mp4", content)
        data = bytearray((folder / "a.zip").read_bytes())
        data[place] ^= 0xFF
        data[place + 1] ^= 0xFF
        (folder / "a.zip").write_bytes(data)
        with pytest.raises(DataSetError, match="cannot be unpacked"):
            MediaFiles(folder, (".mp4",)).path("one", "video")
        assert list((folder / "video").iterdir()) == []
