"""WebDataset: samples of tar members, media by byte range, index files next to the archive, damage."""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from longvita.data.errors import Reason
from longvita.data.formats import tar
from longvita.data.formats.record import FormatOptions
from longvita.data.media.media_file import FilePart, read_bytes
from longvita.data.sample import Turn
from tests.unit.data.format_material import llava, png, read_all, reasons_of, samples_of, write_index, write_tar
from tests.unit.data.material import conversation

RED, BLUE = png("red"), png("blue")
DUMPED = json.dumps


def said(number, answer):
    """A member: a sample of text alone."""
    return f"{number}.json", json.dumps({"question": "?", "answer": answer})


def test_media_are_ranges_of_the_archive(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("d/1.v.mp4", b"film"), ("d/1.JPG", RED), ("d/1.txt", " a film \n")])
    (sample,) = samples_of("webdataset", path)
    assert [read_bytes(ref) for ref in (*sample.images, *sample.videos)] == [RED, b"film"]
    assert all(isinstance(ref, FilePart) and ref.path == str(path) for ref in sample.images)
    assert sample.turns == (Turn("user", "<image>\n<video>\nDescribe what you see."), Turn("assistant", "a film"))


@pytest.mark.parametrize("end", ["avif", "jfif", "heic", "svg"])
def test_a_picture_is_one_whether_it_can_be_read_or_not(tmp_path, end):
    path = write_tar(tmp_path / "a.tar", [(f"1.{end}", RED), ("1.json", DUMPED({"question": "?", "answer": "red"}))])
    (sample,) = samples_of("webdataset", path)
    assert [read_bytes(ref) for ref in sample.images] == [RED]


def test_texts_of_all_kinds(tmp_path):
    members = [
        ("1.png", RED), ("1.json", DUMPED(llava("<image>what?", "red"))),
        ("2.0.png", RED), ("2.1.png", BLUE), ("2.json", DUMPED(conversation("<image>then<image>?", "yes"))),
        ("3.png", RED), ("3.cls", "7"),
        ("4.png", RED), ("4.json", DUMPED({"caption": "red", "width": 8})),
        ("5.json", DUMPED({"question": "say it", "answer": "it"})),
        ("6.png", RED), ("6.json", DUMPED({"width": 8})), ("6.txt", "red"), ("6.npy", b"anything"),
    ]  # fmt: skip
    path = write_tar(tmp_path / "a.tar", members)
    samples = samples_of("webdataset", path, FormatOptions((), "What?"))
    assert [[turn.text for turn in sample.turns] for sample in samples] == [
        ["<image>what?", "red"],
        ["<image>then<image>?", "yes"],
        ["<image>\nWhat?", "7"],
        ["<image>\nWhat?", "red"],
        ["say it", "it"],
        ["<image>\nWhat?", "red"],
    ]
    assert [read_bytes(ref) for ref in samples[1].images] == [RED, BLUE]


def test_media_that_the_text_lists(tmp_path):
    listed = conversation("<image><image><video>", images=["b.1.png", "elsewhere.png"], videos=["frames"])
    members = [("d/b.0.png", BLUE), ("d/b.1.png", RED), ("d/b.json", DUMPED(listed))]
    (sample,) = samples_of("webdataset", write_tar(tmp_path / "a.tar", members))
    assert read_bytes(sample.images[0]) == RED
    assert (sample.images[1], sample.videos) == ("elsewhere.png", ("frames",))


def test_a_list_of_old_names_means_the_members(tmp_path):
    text = DUMPED(llava("<image><image>?", image=["coco/7.jpg", "coco/8.jpg"]))
    (sample,) = samples_of(
        "webdataset", write_tar(tmp_path / "a.tar", [("1.a.png", RED), ("1.b.png", BLUE), ("1.json", text)])
    )
    assert [read_bytes(ref) for ref in sample.images] == [RED, BLUE]


@pytest.mark.parametrize("folder", ["", "img/", "./img/", "./"])
@pytest.mark.parametrize("listed", ["", "./", "img/", "train/2017/", "/mnt/train/"])
def test_listed_names_are_matched_without_their_folders(tmp_path, folder, listed):
    text = DUMPED(llava("<image><image>?", image=[f"{listed}s.b.png", f"{listed}s.a.png"]))
    members = [(f"{folder}s.json", text), (f"{folder}s.a.png", RED), (f"{folder}s.b.png", BLUE)]
    (sample,) = samples_of("webdataset", write_tar(tmp_path / "a.tar", members))
    assert [read_bytes(ref) for ref in sample.images] == [BLUE, RED]


@pytest.mark.parametrize("listed", [["s.a.png"], ["train/s.a.png"], ["other.png"]])
def test_members_that_the_text_does_not_list_are_named(tmp_path, listed):
    members = [("s.json", DUMPED(llava("<image>?", image=listed))), ("s.a.png", RED), ("s.b.jpg", BLUE)]
    (sample,) = samples_of("webdataset", write_tar(tmp_path / "a.tar", members))
    assert len(sample.images) == 1
    assert sample.unused == ((".jpg", ".png") if listed == ["other.png"] else (".jpg",))


def test_two_listed_files_of_one_name_are_not_one_member(tmp_path):
    text = DUMPED(llava("<image><image>?", image=["x/s.a.png", "y/s.a.png"]))
    members = [("s.json", text), ("s.a.png", RED), ("s.b.png", BLUE)]
    (sample,) = samples_of("webdataset", write_tar(tmp_path / "a.tar", members))
    assert sample.images == ("x/s.a.png", "y/s.a.png")


def test_renamed_members_are_in_natural_order(tmp_path):
    colours = [png(f"#0000{number:02x}") for number in range(12)]
    text = DUMPED(llava("<image>" * 12, image=[f"coco/{number}.jpg" for number in range(12)]))
    members = sorted((f"s.{number}.png", colour) for number, colour in enumerate(colours))
    (sample,) = samples_of("webdataset", write_tar(tmp_path / "a.tar", [*members, ("s.json", text)]))
    assert [read_bytes(ref) for ref in sample.images] == colours


def add_entry(path, name, kind, link="/etc/passwd"):
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        archive.addfile(info)


def test_folders_are_no_members(tmp_path):
    path = write_tar(tmp_path / "a.tar", [said(1, "one")])
    add_entry(path, "folder", tarfile.DIRTYPE)
    assert len(samples_of("webdataset", path)) == 1


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("first", [True, False])
def test_a_sample_whose_picture_is_a_link_is_not_text_alone(tmp_path, kind, first):
    """tar writes the second of two files that are one on disk as a link."""
    path = write_tar(tmp_path / "a.tar", [] if first else [said(1, "one"), said(2, "two")])
    add_entry(path, "2.png", kind, "1.png")
    if first:
        append(path, *said(2, "two"))
    *_, (_, place, error) = read_all("webdataset", path)
    assert (place.line, error.reason) == (1 if first else 2, Reason.INVALID_SAMPLE)
    assert error.detail == "2.png is a link; fix: pack the files themselves (tar --dereference --hard-dereference)"


def test_long_names(tmp_path):
    name = "folder/" * 30 + "key"
    path = write_tar(tmp_path / "a.tar", [said(0, "a"), (f"{name}.png", RED), (f"{name}.txt", "it"), said("z", "b")])
    found = list(read_all("webdataset", path, 1))
    assert [len(sample.images) for _, _, sample in found] == [0, 1, 0]
    assert found[1][2].images[0].name == f"{name}.png"


def test_broken_samples_are_quarantined(tmp_path):
    members = [
        said(1, "good"), ("2.json", "{oops"), ("3.json", "[1]"), ("4.png", RED), ("5.txt", b"\xff\xfe"),
        ("6.png", RED), ("6.txt", ""), ("7.png", RED), ("7.json", DUMPED(conversation("<image><image>"))),
        said(8, "good"), ("9.txt", "of nothing"),
    ]  # fmt: skip
    assert reasons_of("webdataset", write_tar(tmp_path / "a.tar", members)) == [
        (2, Reason.INVALID_JSON),
        (3, Reason.INVALID_SAMPLE),
        (4, Reason.INVALID_SAMPLE),
        (5, Reason.INVALID_SAMPLE),
        (6, Reason.EMPTY_TURN),
        (7, Reason.MARK_COUNT),
        (9, Reason.INVALID_SAMPLE),
    ]


@pytest.mark.parametrize("kept, complete", [(2000, 1), (2400, 1), (3000, 1), (3075, 2), (1500, 0)])
def test_a_truncated_archive(tmp_path, kept, complete):
    """Before a truncated header, it is unknown whether the last sample was complete."""
    path = write_tar(tmp_path / "a.tar", [said(1, "one"), said(2, "two" * 200), said(3, "three")])
    path.write_bytes(path.read_bytes()[:kept])
    found = list(read_all("webdataset", path))
    assert [content.turns[1].text[:3] for _, _, content in found[:-1]] == ["one", "two"][:complete]
    assert found[-1][2].reason == Reason.INVALID_SAMPLE
    assert "can't be read from here" in found[-1][2].detail


def test_damage_within_an_archive(tmp_path):
    path = write_tar(tmp_path / "a.tar", [said(1, "one"), said(2, "two"), said(3, "three"), said(4, "four")])
    content = bytearray(path.read_bytes())
    content[2048:2560] = b"x" * 512
    path.write_bytes(content)
    assert reasons_of("webdataset", path) == [(2, Reason.INVALID_SAMPLE)]
    assert "byte 2048" in list(read_all("webdataset", path))[-1][2].detail


def test_members_after_an_end_are_not_skipped_silently(tmp_path):
    """Two archives in one file; an archive with a hole. The sample before may not be complete."""
    path = write_tar(tmp_path / "a.tar", [said(1, "one"), said(2, "two")])
    whole = path.read_bytes()
    path.write_bytes(whole * 2)
    assert reasons_of("webdataset", path) == [(2, Reason.INVALID_SAMPLE)]
    path.write_bytes(whole[:1024] + bytes(512) + whole[1024:])
    assert reasons_of("webdataset", path) == [(1, Reason.INVALID_SAMPLE)]
    path.write_bytes(whole.ljust(1 << 20, b"\0"))  # As tar -b 2048 pads it.
    assert reasons_of("webdataset", path) == []


def test_a_file_that_is_no_archive(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"this is no archive\n" * 100)
    assert reasons_of("webdataset", path) == [(1, Reason.WRONG_FORMAT)]


def forbid_a_pass(monkeypatch):
    def refuse(*_arguments):
        raise AssertionError("the headers were gone through")

    monkeypatch.setattr(tar, "members", refuse)


def test_a_correct_index_file_replaces_the_pass(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", [(f"{n}.{end}", RED) for n in range(30) for end in ("png", "txt.jpg")])
    plain = list(tar.members(str(path), 0, path.stat().st_size))
    write_index(path)
    forbid_a_pass(monkeypatch)
    indexed = list(tar.listed_members(str(path), 0, path.stat().st_size))
    assert [(m.name, m.header, m.data, m.size) for m in indexed] == [(m.name, m.header, m.data, m.size) for m in plain]


def append(path, name, text):
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text.encode()))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: write_tar(path, [("1.txt", "another"), ("2.txt", "two")]),
        lambda path: write_tar(path, [(f"{n}.txt", "x" * 600) for n in (1, 2, *range(3, 60))]),
        lambda path: append(path, "3.txt", "one more"),
        lambda path: path.with_suffix(".idx").write_text("v1.2 1\ntxt 2048 600 2.txt\n"),
        lambda path: path.with_suffix(".idx").write_text("v1.2 2\ntxt 512 three 1.txt\n"),
        lambda path: path.with_suffix(".idx").write_text("v1.2 9\ntxt 512 3 1.txt\n"),
        lambda path: path.with_suffix(".idx").write_text("v1.2 1\ntxt 100 3 1.txt\n"),
        lambda path: path.with_suffix(".idx").write_text("v1.2 1\ntxt 512 600 1.txt txt 1536 -600 2.txt\n"),
        lambda path: path.with_suffix(".idx").write_text("v1.2 1\ntxt one 3 1.txt\n"),
        lambda path: path.with_suffix(".idx").write_text(""),
        lambda path: path.with_suffix(".idx").write_bytes(b"\xff\xfe\x00"),
    ],
)
def test_a_wrong_index_file_is_ignored(tmp_path, spoil):
    path = write_tar(tmp_path / "a.tar", [("1.txt", "x" * 600), ("2.txt", "x" * 600)])
    write_index(path)
    spoil(path)
    names = [member.name for member in tar.listed_members(str(path), 0, path.stat().st_size)]
    with tarfile.open(path) as archive:
        assert names == archive.getnames()


def test_only_headers_and_texts_are_read(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", [("1.mp4", b"x" * (8 << 20)), ("1.txt", "a film")])
    read, real = [], tar.remote.open_file

    class Counting:
        def __init__(self, *arguments):
            self.file = real(*arguments)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def read(self, size=-1):
            read.append(size)
            return self.file.read(size)

    monkeypatch.setattr(tar.remote, "open_file", Counting)
    assert len(samples_of("webdataset", path)) == 1
    assert 0 < sum(read) < 20_000
