"""Values of a table's columns with and without their bytes.

A bytes value, also one in a struct or list, is a cell: a picture or video that is read when it is wanted. The shape of
a row says where its cells are, so that the rest of the row can be read without them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

Shape = Any
"""Null, a number of the bytes (equal bytes of a row have equal numbers), or a list of the shapes of the elements of a
list or of the fields of a struct that hold cells."""


def is_light(kind: Any) -> bool:
    """Whether the values of a type are small: numbers, texts and lists of texts."""
    from pyarrow import types

    inner = kind.value_type if types.is_list(kind) or types.is_large_list(kind) else kind
    is_text = types.is_string(inner) or types.is_large_string(inner)
    return is_text or (inner is kind and types.is_primitive(kind)) or types.is_null(kind)


def holds_bytes(kind: Any) -> bool:
    """Whether the values of a type are bytes, or structs or lists with some."""
    return is_bytes(kind) or any(holds_bytes(kind.field(number).type) for number in range(kind.num_fields))


def is_bytes(kind: Any) -> bool:
    """Whether the values of a type are bytes."""
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def names_in(kind: Any) -> list[str]:
    """The names of a struct's fields; none of another type."""
    from pyarrow import types

    return [field.name for field in kind] if types.is_struct(kind) else []


def type_at(kind: Any, step: str) -> Any:
    """The type of a struct's field or, for a number, of a list's elements; None if there is none."""
    if _is_list(kind) and step.isdecimal():
        return kind.value_type
    return kind.field(step).type if step in names_in(kind) else None


@functools.lru_cache(maxsize=1024)
def leaf_cells(kind: Any) -> tuple[bool, ...]:
    """Whether each leaf of a type, in the order of Parquet's columns, holds cells. The bytes of a map are no cells."""
    from pyarrow import types

    if types.is_map(kind):
        return (False,) * len(leaf_cells(kind.key_type) + leaf_cells(kind.item_type))
    if types.is_struct(kind):
        return tuple(leaf for field in kind for leaf in leaf_cells(field.type))
    if _is_list(kind):
        return leaf_cells(kind.value_type)
    return (is_bytes(kind),)


def holds_cells(kind: Any) -> bool:
    """Whether the values of a type may have cells."""
    return any(leaf_cells(kind))


def values_of(array: Any, cells: Callable[[Any], list]) -> list:
    """Return the Python values of an array; `cells` returns those of an array of bytes."""
    from pyarrow import types

    kind = array.type
    if is_bytes(kind):
        return cells(array)
    if not holds_cells(kind):
        return array.to_pylist()
    is_valid = array.is_valid().to_pylist()
    if types.is_struct(kind):
        fields = zip(*(values_of(field, cells) for field in array.flatten()))
        names = [field.name for field in kind]
        return [dict(zip(names, values)) if valid else None for valid, values in zip(is_valid, fields)]
    if types.is_fixed_size_list(kind):
        starts = [number * kind.list_size for number in range(array.offset, array.offset + len(array) + 1)]
    else:
        starts = array.offsets.to_pylist()
    # `flatten` would copy the bytes between null lists.
    elements = iter(values_of(array.values.slice(starts[0], starts[-1] - starts[0]), cells))
    lists = [list(itertools.islice(elements, end - start)) for start, end in itertools.pairwise(starts)]
    return [elements if valid else None for valid, elements in zip(is_valid, lists)]


def no_cells(array: Any) -> list:
    """Leave the bytes of an array unread, for `values_of`."""
    return [None] * len(array)


def scalars(array: Any) -> list:
    """Return the bytes of an array as pyarrow's scalars, None for null, for `values_of`: they are not copied."""
    return [value if value.is_valid else None for value in array]


def cells_in(kind: Any, value: Any) -> Iterator[Any]:
    """Yield the cells of a value in order."""
    if value is None or not holds_cells(kind):
        return
    if is_bytes(kind):
        yield value
    elif _is_list(kind):
        for element in value:
            yield from cells_in(kind.value_type, element)
    else:
        for field in kind:
            yield from cells_in(field.type, value[field.name])


def shape_of(kind: Any, value: Any, number: Callable[[Any], int]) -> Shape:
    """Return the shape of a value; `number` returns the number of a cell."""
    if value is None:
        return None
    if is_bytes(kind):
        return number(value)
    if _is_list(kind):
        return [shape_of(kind.value_type, element, number) for element in value]
    return [shape_of(field.type, value[field.name], number) for field in kind if holds_cells(field.type)]


def filled(kind: Any, value: Any, shape: Shape, cell: Callable[[int], Any]) -> Any:
    """Return a value that was read without its cells with them, in the order of `cells_in`.

    cell: returns the next cell, by its number in the shape. Raises ValueError if the value has another shape.
    """
    if not holds_cells(kind):
        return value
    if shape is None:
        return None
    if is_bytes(kind):
        return cell(shape)
    if _is_list(kind):
        elements = [None] * len(shape) if value is None else value
        return [filled(kind.value_type, element, own, cell) for element, own in zip(elements, shape, strict=True)]
    fields, shapes = value or {}, iter(shape)
    return {
        field.name: filled(field.type, fields.get(field.name), next(shapes) if holds_cells(field.type) else None, cell)
        for field in kind
    }


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
