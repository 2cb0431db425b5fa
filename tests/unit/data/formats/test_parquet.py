"""Tables: images in a struct, in lists, as bytes and as paths; columns by the config; damage."""

from __future__ import annotations

import pytest

from longvita.data.errors import DataError, Reason, SampleError
from longvita.data.formats import make_format, tables
from longvita.data.formats.base import Place
from longvita.data.formats.record import NO_OPTIONS, FormatOptions
from longvita.data.sample import Turn
from tests.unit.data.format_material import embedded, png, read_all, samples_of, write_arrow, write_parquet

RED, BLUE = png("red"), png("blue")


def options(prompt="Describe it.", **columns):
    return FormatOptions(tuple(columns.items()), prompt)


def test_columns_of_the_config(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [{"q": "what?", "label": 3, "scan": RED, "text": "no"}])
    (sample,) = samples_of("parquet", path, options(question="q", answer="label", images="scan"))
    assert sample.turns == (Turn("user", "<image>\nwhat?"), Turn("assistant", "3"))
    assert embedded(sample.images) == [(RED, "images[0]")]


@pytest.mark.parametrize(
    "value, images",
    [
        ({"bytes": RED, "path": "red.png"}, [(RED, "red.png")]),
        ({"bytes": None, "path": "red.png"}, ["red.png"]),
        ([{"bytes": RED, "path": None}, {"bytes": BLUE, "path": "b"}], [(RED, "images[0]"), (BLUE, "b")]),
        ([RED, BLUE], [(RED, "images[0]"), (BLUE, "images[1]")]),
        ("red.png", ["red.png"]),
    ],
)
def test_forms_of_images(tmp_path, value, images):
    path = write_parquet(tmp_path / "a.parquet", [{"image": value, "caption": "it"}, {"image": value, "caption": "it"}])
    first, _ = samples_of("parquet", path, options())
    assert embedded(first.images) == images
    assert first.turns[0].text == "<image>\n" * len(images) + "Describe it."


@pytest.mark.parametrize(
    "column, messages",
    [
        ("messages", [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "red"}]),
        ("conversations", [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "red"}]),
        ("texts", [{"user": "what?", "assistant": "red", "source": "x"}]),
        ("messages", [
            {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "\nwhat?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        ]),
    ],
)  # fmt: skip
def test_forms_of_messages(tmp_path, column, messages):
    path = write_parquet(tmp_path / "a.parquet", [{column: messages, "images": [RED]}])
    (sample,) = samples_of("parquet", path)
    assert sample.turns == (Turn("user", "<image>\nwhat?"), Turn("assistant", "red"))


def test_marks_in_the_text_keep_their_places(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [{"question": "this<image>?", "answer": "yes", "image": RED}])
    assert samples_of("parquet", path)[0].turns[0].text == "this<image>?"


def test_broken_rows_are_quarantined(tmp_path):
    rows = [
        {"question": "a", "answer": "b", "image": RED},
        {"question": "a", "answer": None, "image": RED},
        {"question": "", "answer": "b", "image": None},
        {"question": "<image><image>", "answer": "b", "image": RED},
        {"question": "a", "answer": "b", "image": None},
        {"caption": "of nothing"},
    ]
    path = write_parquet(tmp_path / "a.parquet", rows)
    found = [(place.line, getattr(content, "reason", None)) for _, place, content in read_all("parquet", path)]
    assert found == [
        (1, None),
        (2, Reason.INVALID_SAMPLE),
        (3, Reason.EMPTY_TURN),
        (4, Reason.MARK_COUNT),
        (5, None),
        (6, Reason.INVALID_SAMPLE),
    ]


def test_a_damaged_group_costs_its_rows_alone(tmp_path):
    rows = [{"answer": f"number {number} " + "x" * 200, "question": "?"} for number in range(6)]
    path = write_parquet(tmp_path / "a.parquet", rows)
    group = tables.open_table(str(path))._file.metadata.row_group(1)
    start = group.column(0).dictionary_page_offset or group.column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 20] = b"\xff" * 20
    path.write_bytes(content)
    found = [content for _, _, content in read_all("parquet", path)]
    reasons = [getattr(content, "reason", None) for content in found]
    assert reasons == [None, None, Reason.INVALID_SAMPLE, Reason.INVALID_SAMPLE, None, None]
    assert "row 0 of group 1 can't be read" in found[2].detail
    assert found[4].turns[1].text.startswith("number 4")


def test_a_damaged_footer(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [{"caption": "a"}] * 3)
    content = bytearray(path.read_bytes())
    content[-60:-8] = b"\xff" * 52
    path.write_bytes(content)
    ((_, place, error),) = read_all("parquet", path)
    assert (place.line, error.reason) == (1, Reason.WRONG_FORMAT)
    assert "is no table of format parquet" in error.detail


def test_a_row_of_broken_text_costs_itself_alone(tmp_path):
    """The broken text is the greatest of its column, so that the footer repeats it."""
    rows = [{"answer": f"number {number}", "question": "?"} for number in range(4)]
    rows[1]["answer"] = "zzzzzz"
    path = write_parquet(tmp_path / "a.parquet", rows)
    content = path.read_bytes()
    assert content.count(b"zzzzzz") > 1
    path.write_bytes(content.replace(b"zzzzzz", b"\xff\xfe\xff\xfe\xff\xfe"))
    found = [content for _, _, content in read_all("parquet", path)]
    assert [getattr(content, "reason", None) for content in found] == [None, Reason.INVALID_SAMPLE, None, None]
    with pytest.raises(SampleError, match="can't be read"):
        make_format("parquet", NO_OPTIONS).read(str(path), Place(0, 1, 2))


def test_broken_text_of_another_column_costs_nothing(tmp_path):
    rows = [{"answer": "yes", "question": "?", "note": "zzzzzz"}, {"answer": "no", "question": "?", "note": None}]
    path = write_parquet(tmp_path / "a.parquet", rows)
    path.write_bytes(path.read_bytes().replace(b"zzzzzz", b"\xff\xfe\xff\xfe\xff\xfe"))
    assert [sample.turns[1].text for sample in samples_of("parquet", path)] == ["yes", "no"]


@pytest.mark.parametrize("write, name", [(write_parquet, "a.parquet"), (write_arrow, "a.arrow")])
def test_columns_that_are_not_used_are_named_row_by_row_if_they_are_small(tmp_path, write, name):
    same = {"answer": "yes", "question": "?", "image": RED}
    rows = [
        {**same, "note": "a", "size": 3, "tags": ["x"], "embedding": [0.5], "photo": None, "none": None},
        {**same, "note": None, "size": None, "tags": [], "embedding": None, "photo": None, "none": None},
        {**same, "note": "", "size": 0, "tags": None, "embedding": None, "photo": RED, "none": None},
    ]
    found = [sample.unused for sample in samples_of("parquet", write(tmp_path / name, rows))]
    assert found == [("embedding", "note", "size", "tags"), ("embedding",), ("photo", "size")]


def test_a_picture_in_a_column_of_another_name(tmp_path):
    """The text alone would be trained on, with a mark of nothing."""
    path = write_parquet(tmp_path / "a.parquet", [{"question": "<image>?", "answer": "red", "photo": RED}])
    ((_, _, error),) = read_all("parquet", path)
    assert (error.reason, "fix: columns: {images: photo}" in error.detail) == (Reason.MARK_COUNT, True)
    assert len(samples_of("parquet", path, options(images="photo"))[0].images) == 1


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_file_that_is_no_table(tmp_path, name):
    (tmp_path / name).write_text("this is no table\n" * 50)
    ((_, place, error),) = read_all("parquet", tmp_path / name, 100)
    assert (place.line, error.reason) == (1, Reason.WRONG_FORMAT)
    assert "table: it is text that begins with 'this is no table'; fix: fetch it again" in error.detail


def test_a_missing_column(tmp_path):
    path = write_arrow(tmp_path / "a.arrow", [{"caption": "a", "jpg": RED}])
    format = make_format("parquet", options(images="png"))
    with pytest.raises(
        DataError, match="name 'png' for images, but there are only caption, jpg; fix: columns: {images"
    ):
        format.parts(str(path), 100)
    path = write_parquet(tmp_path / "b.parquet", [{"a": 1}])
    with pytest.raises(DataError, match="no column with messages or captions; it has a"):
        make_format("parquet", NO_OPTIONS).parts(str(path), 100)


@pytest.mark.parametrize(
    "name, problem",
    [
        ("meta.descripton", "'meta' has only description, tags; fix: columns: {caption: meta.description}"),
        ("meta.tags.0.x", "'meta.tags.0' has only values without names; fix: name another one"),
        ("mata.tags.0", "there are only about, caption, jpg, meta, json; fix: columns: {caption: meta.tags.0}"),
        ("about.titel", "'about' has only title; fix: columns: {caption: about.title}"),
        ("meta.description", None), ("meta.tags.0", None), ("about.title", None),
    ],
)  # fmt: skip
def test_a_missing_field(tmp_path, name, problem):
    """The usual caption is not read in its place."""
    meta = {"description": "it", "tags": ["a"]}
    row = {"caption": "short", "jpg": RED, "meta": meta, "json": {"about": {"title": "b"}}}
    path = write_parquet(tmp_path / "a.parquet", [row])
    if problem is None:
        assert samples_of("parquet", path, options(caption=name))[0].turns[1].text in ("it", "a", "b")
        return
    with pytest.raises(DataError) as caught:
        make_format("parquet", options(caption=name)).parts(str(path), 100)
    assert problem in str(caught.value)


def test_a_name_in_json_text_is_looked_up_in_each_row(tmp_path):
    rows = [{"jpg": RED, "txt": "short", "json": text} for text in ('{"a": {"b": "it"}}', '{"a": {"c": "it"}}')]
    path = write_parquet(tmp_path / "a.parquet", rows)
    found = [content for _, _, content in read_all("parquet", path, options=options(caption="a.b"))]
    assert (found[0].turns[1].text, found[1].reason) == ("it", Reason.INVALID_SAMPLE)
    assert "'a' has only c" in found[1].detail


def test_a_missing_row(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [{"caption": "a"}] * 4)
    format = make_format("parquet", NO_OPTIONS)
    places = [place for _, place, _ in read_all("parquet", path)]
    write_parquet(path, [{"caption": "a"}] * 3)
    with pytest.raises(ValueError, match="there is no row 1 of group 1"):
        format.read(str(path), places[3])
