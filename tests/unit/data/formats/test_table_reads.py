"""How much of a table is read for one sample: its text alone if no tile is wanted, else its group's pictures once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from longvita.data.document import DocumentReader, media_settings
from longvita.data.errors import MediaError, Reason
from longvita.data.formats import make_format, row_reader, tables
from longvita.data.formats.base import Place
from longvita.data.formats.record import NO_OPTIONS
from longvita.data.media.media_file import FileIdentity, read_bytes
from longvita.data.media.pictures.picture_file import open_picture
from longvita.data.mix.catalog import build_catalog, make_template
from longvita.data.sample import Sample, hash_media_names
from tests.unit.data.format_material import embedded, png, read_all, write_arrow, write_parquet
from tests.unit.data.material import conversation, data_config
from tools.benchmark.counting_store import CountingStore

RED, BLUE, GREEN = png("red"), png("blue"), png("green")


@pytest.fixture(autouse=True)
def _counted(monkeypatch):
    monkeypatch.setattr(tables, "FOOTER_BYTES", 8)  # The files are so small that the first read would be all.
    CountingStore.address("")  # Makes the store known.
    close_tables()


def close_tables():
    """Forget all that is kept of tables, as in a new process."""
    tables._open.cache_clear()
    row_reader._readers.clear()
    CountingStore.reset()


def struct(content, path=None):
    return {"bytes": content, "path": path}


def part(kind, image=None, text=None):
    return {"type": kind, "image": image, "text": text}


def asked(*parts):
    answer = [part("text", text="red")]
    return [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": answer}]


CAPTION = {"caption": "it"}
FORMS = {
    "bytes": [{**CAPTION, "image": RED}, {**CAPTION, "image": BLUE}],
    "a struct": [{**CAPTION, "image": struct(RED, "a.png")}, {**CAPTION, "image": struct(None, "a.png")}],
    "a list": [{**CAPTION, "images": [RED, None, BLUE]}, {**CAPTION, "images": [BLUE]}],
    "a list of structs": [
        {**CAPTION, "images": [struct(RED), struct(BLUE, "b.png")]},
        {**CAPTION, "images": [struct(None, "c.png"), struct(RED)]},
    ],
    "lists in a struct": [{**CAPTION, "images": {"bytes": [RED, BLUE], "path": ["a", "b"]}}] * 2,
    "nulls": [
        {"question": "?", "answer": "red", "image": RED, "images": None, "video": None},
        {"question": "?", "answer": "red", "image": None, "images": [], "video": b"film"},
        {"question": "?", "answer": "red", "image": None, "images": [RED, BLUE], "video": None},
        {"question": "?", "answer": "red", "image": None, "images": None, "video": None},
    ],
    "parts": [
        {"messages": asked(part("image", struct(RED, "a.png")), part("text", text="?"))},
        {"messages": asked(part("text", text="?"))},
    ],
    "parts without types": [
        {"messages": asked(part(None, struct(RED)), part(None, text="?"))},
        {"messages": asked(part(None, text="?"), part(None, struct(BLUE)))},
    ],
    "the same in a part and in the list": [
        {"messages": asked(part("image", struct(RED, "a.png"))), "images": [struct(RED, "a.png")]},
        {"messages": asked(part("image", struct(RED, "a.png")), part("image")), "images": [struct(BLUE, "a.png")]},
    ],
}  # fmt: skip


def column_bytes(path: Path, leaf: str) -> list[range]:
    """Where the bytes of a column lie in the file, for each group."""
    metadata = pyarrow.parquet.read_metadata(path)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    found = []
    for column in (group.column(number) for group in groups for number in range(group.num_columns)):
        if column.path_in_schema.endswith(leaf):
            start = column.dictionary_page_offset or column.data_page_offset
            found.append(range(start, start + column.total_compressed_size))
    return found


def read_in(ranges: list[range]) -> int:
    """Bytes of ranges that were read."""
    return sum(
        max(0, min(start + size, one.stop) - max(start, one.start))
        for start, size in CountingStore.ranges
        for one in ranges
    )


def indexed(path: Path, kind: str = "parquet") -> tuple[list[Place], list[Sample]]:
    """The places and samples of a table, as indexing finds them."""
    found = [(place, sample) for _, place, sample in read_all(kind, path)]
    assert all(isinstance(sample, Sample) for _, sample in found), found
    return [place for place, _ in found], [sample for _, sample in found]


@pytest.mark.parametrize("write, name", [(write_parquet, "a.parquet"), (write_arrow, "a.arrow")])
@pytest.mark.parametrize("form", FORMS)
def test_a_row_by_its_place_is_the_row_that_was_indexed(tmp_path, form, write, name):
    path = write(tmp_path / name, FORMS[form], 2)
    places, samples = indexed(path)
    media = [embedded([*sample.images, *sample.videos]) for sample in samples]
    close_tables()
    format = make_format("parquet", NO_OPTIONS)
    again = [format.read(str(path), place) for place in places]
    without = [format.read(str(path), dataclasses.replace(place, shape="")) for place in places]
    assert all(place.shape for place in places)
    assert again == without == samples
    assert [embedded([*sample.images, *sample.videos]) for sample in again] == media
    assert list(map(hash_media_names, again)) == list(map(hash_media_names, samples))


@pytest.mark.parametrize("form", FORMS)
def test_without_a_tile_the_pictures_are_not_read(tmp_path, form):
    path = write_parquet(tmp_path / "a.parquet", FORMS[form] * 3, 4)
    address = f"counted://{path}"
    places, _ = indexed(address)
    leaves = [
        *column_bytes(path, "image"), *column_bytes(path, "bytes"), *column_bytes(path, "bytes.list.element"),
        *column_bytes(path, "images.list.element"), *column_bytes(path, "video"),
    ]  # fmt: skip
    assert read_in(leaves) > 0
    for place in places:
        close_tables()
        make_format("parquet", NO_OPTIONS).read(address, place)
        assert CountingStore.bytes_read() > 0
        assert read_in(leaves) == 0


def test_with_tiles_a_group_is_read_once_for_all_its_pictures(tmp_path):
    rows = [{**CAPTION, "images": [struct(png(colour)), struct(png("white", number + 9))]} for number, colour in
            enumerate(("red", "blue", "green", "black", "gray", "pink"))]  # fmt: skip
    path = write_parquet(tmp_path / "a.parquet", rows, 3)
    places, samples = indexed(f"counted://{path}")
    first, second = column_bytes(path, "bytes")
    expected = [embedded(sample.images) for sample in samples]
    close_tables()
    format = make_format("parquet", NO_OPTIONS)
    assert [embedded(format.read(f"counted://{path}", place).images) for place in places[:3]] == expected[:3]
    assert (read_in([first]), read_in([second])) == (len(first), 0)
    assert [embedded(format.read(f"counted://{path}", place).images) for place in places[:3]] == expected[:3]
    assert read_in([first]) == len(first)


def test_few_bytes_are_kept_and_any_order_is_right(tmp_path, monkeypatch):
    monkeypatch.setattr(row_reader, "KEPT_BYTES", 1000)
    monkeypatch.setattr(tables, "BATCH_ROWS", 2)
    contents = [bytes([number]) * 400 for number in range(24)]
    path = write_parquet(tmp_path / "a.parquet", [{**CAPTION, "image": content} for content in contents], 8)
    _, samples = indexed(path)
    for order in (range(24), reversed(range(24)), [0, 9, 1, 10, 8, 0, 23, 7]):
        for number in order:
            assert read_bytes(samples[number].images[0]) == contents[number]
            kept = list(row_reader._readers.values())
            assert sum(reader._kept_bytes for reader in kept) <= 2 * 1000


def write_pages(path: Path, rows: list[dict], **options) -> Path:
    """A Parquet file of one group in which each value has its page."""
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(
        table, path, write_batch_size=1, data_page_size=1, use_dictionary=False, write_statistics=False, **options
    )
    return path


def damage(path: Path, content: bytes, lead: int = 0) -> None:
    """Overwrite the start of a value, or `lead` bytes before it, in a file."""
    data = bytearray(path.read_bytes())
    assert data.count(content) == 1
    start = data.index(content) - lead
    data[start : start + lead + 8] = b"\xff" * (lead + 8)
    path.write_bytes(data)


def test_a_damaged_picture_costs_its_sample(tmp_path):
    colours = ("red", "blue", "green", "black")
    path = write_pages(tmp_path / "a.parquet", [{**CAPTION, "image": png(one)} for one in colours], compression="none")
    damage(path, png("blue"))
    _, samples = indexed(path)
    for number, sample in enumerate(samples):
        if number == 1:
            with pytest.raises(MediaError) as caught:
                open_picture(sample.images[0])
            assert caught.value.reason == Reason.BROKEN_PICTURE
        else:
            assert open_picture(sample.images[0]).size == (8, 8)


def test_a_damaged_page_leaves_the_rows_before_it_and_all_texts(tmp_path):
    colours = ("red", "blue", "green", "black")
    path = write_pages(tmp_path / "a.parquet", [{**CAPTION, "image": png(one)} for one in colours], compression="none")
    places, samples = indexed(path)
    pictures = embedded(samples[0].images + samples[1].images)
    close_tables()
    damage(path, png("green"), lead=30)
    format = make_format("parquet", NO_OPTIONS)
    again = [format.read(str(path), place) for place in places]
    assert [sample.turns for sample in again] == [sample.turns for sample in samples]
    for number in (3, 2, 3):
        with pytest.raises(MediaError) as caught:
            open_picture(again[number].images[0])
        assert caught.value.reason == Reason.BROKEN_PICTURE
    assert embedded(again[0].images + again[1].images) == pictures
    errors = [getattr(sample, "detail", "") for _, _, sample in read_all("parquet", path)]
    assert errors[:2] == ["", ""]
    assert all(f"row {number} of group 0 can't be read" in errors[number] for number in (2, 3))


def test_a_file_that_was_written_again(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [{**CAPTION, "image": RED}])
    _, (sample,) = indexed(path)
    write_parquet(path, [{**CAPTION, "image": RED, "more": 1}] * 2)
    with pytest.raises(MediaError, match="changed; start again, which rebuilds the index"):
        open_picture(sample.images[0])


def test_identities_of_the_pictures_of_a_table(tmp_path):
    """Caches of frames and packet tables use them; none is read."""
    path = write_parquet(
        tmp_path / "a.parquet", [{**CAPTION, "videos": [b"one", b"two"]}, {**CAPTION, "videos": [b"one"]}]
    )
    places, _ = indexed(f"counted://{path}")
    close_tables()
    samples = [make_format("parquet", NO_OPTIONS).read(f"counted://{path}", place) for place in places]
    identities = [FileIdentity.of(video) for sample in samples for video in sample.videos]
    assert read_in(column_bytes(path, "element")) == 0
    assert len(set(identities)) == 3


def test_a_rank_without_tiles_of_a_document(folder):
    """The index keeps where the pictures are, over parts and in the file."""
    rows = [{"conversations": conversation("<image>" * (number % 3) + "?", str(number))["messages"],
             "images": [struct(png("red", 40 + number))] * (number % 3)} for number in range(12)]  # fmt: skip
    path = write_parquet(folder / "a.parquet", rows, 3)
    config = data_config(folder, {"a": {"data_paths": [f"counted://{path}"]}}, index_processes=0)
    template = make_template(config)
    catalog = build_catalog(config, template, config.data.dataset)
    reader = DocumentReader(template, media_settings(config))
    pictures = column_bytes(path, "bytes")
    requests = [catalog.request(number) for number in range(len(rows))]
    assert [len(request.facts.pictures) for request in requests] == [0, 1, 2] * 4
    for request in requests:
        close_tables()
        assert len(reader.read(request).encoded.input_ids) == request.length
        assert read_in(pictures) == 0
        for wanted in ((tile,) for tile in range(request.num_tiles)):
            close_tables()
            assert len(reader.read(dataclasses.replace(request, wanted=wanted)).pixels) == 1
            assert read_in(pictures) == len(pictures[request.place.offset])
