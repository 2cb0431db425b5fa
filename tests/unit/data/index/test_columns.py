"""The columns of an index: shapes are held once for each part, whatever the number of samples."""

from __future__ import annotations

import tracemalloc

import pytest

from longvita.data.formats.base import Place
from longvita.data.index.columns import IndexBuilder, join_parts, slice_index
from longvita.data.media.item import MediaFacts

WIDE = '{"images":[' + ",".join(map(str, range(4000))) + "]}"


def part_of(shapes):
    builder = IndexBuilder()
    for line, shape in enumerate(shapes, start=1):
        builder.add(Place(0, 1, line, (), shape), 0, 1, MediaFacts())
    return builder.index()


def shapes_of(index):
    return [index.place(number).shape for number in range(len(index))]


PARTS = [["b", "", "a", "b"], [], ["", ""], ["c", "a"], ["", ""]]
ALL = [shape for part in PARTS for shape in part]


def test_shapes_of_joined_parts():
    index = join_parts([(part_of(shapes), 0) for shapes in PARTS])
    assert shapes_of(index) == ALL
    assert index.shapes.tolist() == [b"", b"a", b"b", b"c"]


@pytest.mark.parametrize("parts", [[], [[]], [["", ""], []]])
def test_without_shapes_there_are_no_columns_of_them(parts):
    index = join_parts([(part_of(shapes), 0) for shapes in parts])
    assert (len(index.shapes), len(index.shape_numbers)) == (0, 0)


@pytest.mark.parametrize("rows", [range(4), range(4, 4), range(4, 6), range(6, 8), range(10), range(9, 10)])
def test_shapes_of_a_slice(rows):
    shapes = ALL[rows.start : rows.stop]
    part = slice_index(join_parts([(part_of(shapes), 0) for shapes in PARTS]), rows, range(1, 11), {})
    assert shapes_of(part) == shapes
    assert part.shapes.tolist() == ([one.encode() for one in sorted(set(shapes))] if any(shapes) else [])


def test_a_wide_shape_is_not_repeated_for_each_sample():
    tracemalloc.start()
    try:
        part = part_of([WIDE, *["a"] * 5000])
        slice_index(join_parts([(part, 0), (part, 5001)]), range(5001), range(1, 5002), {})
        assert tracemalloc.get_traced_memory()[1] < len(WIDE) * 1000
    finally:
        tracemalloc.stop()
