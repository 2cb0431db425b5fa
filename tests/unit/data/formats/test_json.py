"""Arrays of LLaVA and ShareGPT: elements found in blocks of any size, broken ones quarantined alone."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvita.data.errors import Reason
from longvita.data.formats import json_array
from longvita.data.formats.base import Part
from longvita.data.formats.json_array import JsonArray, _Scan, elements
from longvita.data.formats.record import NO_OPTIONS
from longvita.data.sample import Turn
from tests.unit.data.format_material import dump_json, llava, read_all, reasons_of, samples_of

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def scan(content: bytes, block: int) -> list[bytes]:
    """The elements of an array after its bracket, fed in blocks."""
    scanner, found = _Scan(0), []
    for start in [*range(0, len(content), block), len(content)]:
        if not scanner.ended:
            found += scanner.feed(content[start : start + block])
    return found


@given(st.lists(VALUES, max_size=6), st.integers(1, 40), st.sampled_from([None, 1]), st.booleans())
def test_elements_are_those_of_the_parsed_array(values, block, indent, ascii_only):
    content = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode()[1:]
    found = scan(content, block)
    assert [json.loads(element) for _, element in found] == values
    assert all(content[offset : offset + len(element)] == element for offset, element in found)


def test_llava_and_sharegpt(tmp_path):
    path = dump_json(
        tmp_path / "a.json",
        [
            llava("<image>\nwhat?", id="1", image="coco/1.jpg"),
            llava("<image><image>?", image=["a.jpg", "b.jpg"]),
            llava("<video>?", video="c.mp4"),
            llava("hello", image=None),
        ],
    )
    samples = samples_of("json", path)
    assert [(sample.images, sample.videos) for sample in samples] == [
        (("coco/1.jpg",), ()),
        (("a.jpg", "b.jpg"), ()),
        ((), ("c.mp4",)),
        ((), ()),
    ]
    assert samples[0].turns == (Turn("user", "<image>\nwhat?"), Turn("assistant", "yes"))


def test_broken_elements_are_quarantined_and_the_others_stay(tmp_path):
    good = json.dumps(llava("hello"))
    path = tmp_path / "a.json"
    path.write_text(f'[{good}, {{"a": ]}}, 7, "text", {good}, {{"conversations": []}}, {good}] behind it')
    assert reasons_of("json", path) == [
        (2, Reason.INVALID_JSON),
        (3, Reason.INVALID_SAMPLE),
        (4, Reason.INVALID_SAMPLE),
        (6, Reason.INVALID_SAMPLE),
        (8, Reason.INVALID_JSON),
    ]
    assert len(list(read_all("json", path))) == 8


@pytest.mark.parametrize("end", ["", ",", ",\n", "]\n[{1}]", "],\n{2}]", "] x"])
@pytest.mark.parametrize("part_bytes", [50, 10**6])
def test_an_array_without_its_end(tmp_path, end, part_bytes):
    """Truncated between elements, or with data after its bracket."""
    good = ",\n".join(json.dumps(llava(text)) for text in ("one", "two"))
    path = tmp_path / "a.json"
    path.write_text(f"[{good}{end}")
    found = [content for _, _, content in read_all("json", path, part_bytes)]
    assert [getattr(content, "reason", None) for content in found] == [None, None, Reason.INVALID_JSON]
    assert "the array is not closed at its end" in found[2].detail


@pytest.mark.parametrize("end", ["]", " , ]\n", "\n]\n\n"])
def test_an_array_with_its_end(tmp_path, end):
    (tmp_path / "a.json").write_text(f"[{json.dumps(llava('one'))}{end}")
    assert len(samples_of("json", tmp_path / "a.json")) == 1


def test_a_truncated_file(tmp_path):
    path = dump_json(tmp_path / "a.json", [llava(f"number {number}") for number in range(5)])
    path.write_bytes(path.read_bytes()[:-30])
    assert reasons_of("json", path) == [(5, Reason.INVALID_JSON)]
    assert len(list(read_all("json", path, 1))) == 5


def test_a_byte_order_mark_and_spaces_before_the_array(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf \n[ " + json.dumps(llava("hello")).encode() + b"\n]\n")
    assert len(samples_of("json", path)) == 1


def test_a_grown_file_keeps_its_first_parts(tmp_path):
    values = [llava(f"number {number}") for number in range(20)]
    path, format = tmp_path / "a.json", JsonArray(NO_OPTIONS)
    parts = [format.parts(str(dump_json(path, values[:count])), 300) for count in (15, 20)]
    assert len(parts[0]) > 3
    assert parts[0][:-1] == parts[1][: len(parts[0]) - 1]


def test_brackets_without_an_end_do_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_array, "MAX_SAMPLE_BYTES", 1000)
    monkeypatch.setattr(json_array, "READ_BYTES", 100)
    path = tmp_path / "a.json"
    path.write_text("[" + json.dumps(llava("hello")) + ', {"a": ' + "[1, " * 5000)
    found = list(elements(str(path), Part(1, path.stat().st_size)))
    assert len(found) == 2
    assert len(found[1][1]) <= 1100


def test_a_large_file_is_not_kept_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_array, "READ_BYTES", 1 << 16)
    path = dump_json(tmp_path / "a.json", [llava("x" * 2000) for _ in range(2000)])
    size = path.stat().st_size
    tracemalloc.start()
    assert sum(1 for _ in elements(str(path), Part(1, size))) == 2000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > 4_000_000
    assert peak < 1 << 20
