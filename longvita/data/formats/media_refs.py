"""References to the pictures and videos of a record: paths, bytes, structs of both, base64 text, parts of a message."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from longvita.data.errors import Reason, SampleError
from longvita.data.formats.table_cells import TableCell
from longvita.data.media.media_file import EmbeddedMedia, FilePart, InlineMedia, MediaRef
from longvita.data.media.suffixes import PICTURES, VIDEOS, ending
from longvita.data.sample import is_path
from longvita.errors import shorten

DATA_ADDRESS = re.compile(r"data:[\w.+-]*/?[\w.+-]*(?:;[\w.+=-]+)*?;base64,")
"""The start of a picture or video in an address."""
BASE64_FILE = re.compile(r"/9j/|iVBORw0KGgo|R0lGOD|UklGR|AAAA..Z0eX")
"""The start of a JPEG, PNG, GIF, WebP or MP4 file as base64."""
MIN_BASE64 = 40
"""A shorter text is a path, whatever it begins with; and so is one with a dot, which base64 has not."""
FILE_ADDRESS = "file://"
REFERENCES = ("bytes", "path", "url", "data", "base64", "b64_json")
"""Keys of a struct that holds a picture or video, the first with a value is used."""


def transposed(value: Any) -> Any:
    """Return a struct of lists, as `datasets` stores a Sequence of structs, as a list of structs; else the value.

    Raises SampleError(invalid_sample) if the lists differ in length.
    """
    if not isinstance(value, dict):
        return value
    lists = {key: items for key, items in value.items() if items is not None}
    if not lists or not all(isinstance(items, list) for items in lists.values()):
        return value
    lengths = {len(items) for items in lists.values()}
    if len(lengths) > 1:
        counts = shorten(", ".join(f"{len(items)} {key}" for key, items in lists.items()))
        raise SampleError(Reason.INVALID_SAMPLE, f"a struct of lists has {counts}; fix: as many of each")
    return [dict(zip(lists, items)) for items in zip(*lists.values())]


def media_refs(value: Any, noun: str) -> list[MediaRef]:
    """Return the references of one picture or video (`noun` is images or videos), or of a list; nulls are left out.

    Raises SampleError.
    """
    value = transposed(value)
    values = value if isinstance(value, list) else [None if value == "" else value]
    return [media_ref(one, f"{noun}[{number}]") for number, one in enumerate(values) if not _is_null(one)]


def _is_null(value: Any) -> bool:
    is_struct = isinstance(value, dict) and len(value) > 0
    return value is None or (is_struct and all(one is None for one in value.values()))


def media_ref(value: Any, name: str) -> MediaRef:
    """Return the reference of a path, bytes, base64 text, or a struct with one of them. Raises SampleError."""
    is_bytes = False
    if isinstance(value, dict):
        path = value.get("path")
        name = path if isinstance(path, str) and is_path(path) else name
        key = next((key for key in REFERENCES if value.get(key) is not None), "")
        value, is_bytes = value.get(key, value), key in ("bytes", "data", "base64", "b64_json")
    if isinstance(value, bytes):
        return InlineMedia(value, name)
    if isinstance(value, TableCell):
        return replace(value, name=name)
    if isinstance(value, FilePart):
        return value
    if not isinstance(value, str) or not is_path(value):
        raise SampleError(
            Reason.INVALID_SAMPLE, f"{shorten(name)} is no path, bytes or struct of both, but {shorten(ascii(value))}"
        )
    return _of_text(value, name, is_bytes)


def _of_text(text: str, name: str, is_bytes: bool) -> MediaRef:
    address = DATA_ADDRESS.match(text)
    if address or is_bytes or _is_base64(text):
        try:
            content = base64.b64decode("".join(text[address.end() if address else 0 :].split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise SampleError(Reason.INVALID_SAMPLE, f"{shorten(name)} is no base64 of a file: {error}") from None
        return InlineMedia(content, name)
    return text.removeprefix(FILE_ADDRESS)


def _is_base64(text: str) -> bool:
    return len(text) >= MIN_BASE64 and BASE64_FILE.match(text) is not None and "." not in text


def holds_media(value: Any) -> bool:
    """Return whether a value looks like a picture or video: bytes, a struct with them, the name of such a file."""
    if isinstance(value, bytes | EmbeddedMedia):
        return True
    if isinstance(value, str):
        is_name = len(value) < 4096 and "\n" not in value and ending(value) in (*PICTURES, *VIDEOS)
        return is_name or bool(DATA_ADDRESS.match(value)) or _is_base64(value)
    if isinstance(value, dict):
        return any(holds_media(value.get(key)) for key in REFERENCES)
    return isinstance(value, Sequence) and any(holds_media(one) for one in value)


def placed(owned: Sequence[MediaRef | None], listed: Sequence[MediaRef], noun: str) -> list[MediaRef]:
    """Return the media of a text's marks, in their order: a mark's own, or the next one of the record's list.

    owned: the own one of each mark, None for a mark without. Files that a container holds (FilePart) are found by
    their names; if as many are listed as marks have own ones, the list means the same ones. Raises
    SampleError(mark_count).
    """
    own = [ref for ref in owned if ref is not None]
    if not own:
        return list(listed)
    held = {name: ref for ref in listed if isinstance(ref, FilePart) for name in _names_of(ref)}
    refs = [held.get(ref, ref) if isinstance(ref, str) else ref for ref in owned]
    bare = len(owned) - len(own)
    rest = list(listed) if bare == len(listed) else [ref for ref in listed if ref not in refs]
    if not bare and len(rest) == len(own) and all(isinstance(ref, FilePart) for ref in rest):
        return rest
    if bare != len(rest):
        raise SampleError(
            Reason.MARK_COUNT,
            f"{bare} marks without {noun} of their own for {len(rest)} listed {noun}; fix: name each of the {noun} "
            "once, in the messages or in the list",
        )
    following = iter(rest)
    return [next(following) if ref is None else ref for ref in refs]


def _names_of(part: FilePart) -> tuple[str, str]:
    return part.name, part.name.rpartition("/")[2]
