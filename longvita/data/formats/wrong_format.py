"""Whether a data file as a whole is not of its format: one error, not one for each of its lines."""

from __future__ import annotations

import json
import re

from longvita.data.file_kinds import HEAD_BYTES, FileKind, kind_of
from longvita.data.formats.text import other_encoding
from longvita.data.storage import remote
from longvita.errors import shorten

NAMES = {
    "jsonl": "JSONL",
    "json": "a JSON array",
    "csv": "CSV",
    "parquet": "a Parquet table",
    "arrow": "an Arrow table",
    "webdataset": "a tar archive",
}
"""What files are expected to be, as messages name it."""
TEXTS = ("jsonl", "json", "csv")
LINE_BYTES = 1 << 20
"""Bytes that are read in addition of a text with long lines."""
MIN_TEXT_LINES = 8
"""Lines without JSON that make a text one without JSON; fewer may be damage at its beginning."""
BINARY_BYTES = 64
"""A text has no zero among so many bytes at its beginning."""
SHOWN_TEXT = 60
"""Characters of an unknown text in a message."""
CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
"""Bytes that no text holds."""
HEADER = re.compile(rb'(?:"?[\w .:/-]{1,60}+"?(?:[,;\t]|$)){2,}+')
"""The first line of a table of texts: names with commas, semicolons or tabs between them."""
JSONL = FileKind("JSONL, one object a line", "set its source's format to jsonl, or name it *.jsonl", "jsonl")
ARRAY = FileKind("a JSON array", "set its source's format to json, or name it *.json", "json")
OBJECT = FileKind(
    "a JSON object",
    "set its source's format to jsonl if each line is one, otherwise write its list alone: jq .KEY OLD > NEW",
)
OBJECTS = FileKind("JSON objects of several lines each", "jq -c . OLD > NEW")
DICTS = FileKind("Python dicts, not JSON", "write each line with json.dumps")
CSV = FileKind("CSV or TSV", "write its rows as JSONL (pandas: to_json with orient='records', lines=True)", "csv")
ZEROS = FileKind("zeros, not copied or downloaded completely", "fetch it again")
BINARY = FileKind(
    "binary data of an unknown kind, or damaged", "fetch it again, or write its samples in one of the formats"
)


def wrong_format(path: str, expected: str) -> str | None:
    """Return what a data file is, and the fix, if its first bytes show that it is not what is expected.

    expected: a key of NAMES. Raises OSError.
    """
    head, is_cut = _read_head(path)
    if not head.strip():
        return f"the file is empty, not {NAMES[expected]}; fix: fetch or write it again, or leave it out"
    kind = kind_of(head) or _text_kind(head, is_cut, expected)
    if kind is None or kind.format == expected:
        return None
    return f"the file is not {NAMES[expected]}: {kind}"


def _read_head(path: str) -> tuple[bytes, bool]:
    """Read the beginning of a file, the first lines of a text; also return whether the file is longer."""
    with remote.open_file(path, HEAD_BYTES) as file:
        head = file.read(HEAD_BYTES)
        if head.count(b"\n") < MIN_TEXT_LINES and not CONTROL.search(head):
            head += file.read(LINE_BYTES)
        return head, bool(file.read(1))


def _text_kind(head: bytes, is_cut: bool, expected: str) -> FileKind | None:
    """The kind of a text; None for one that may be what is expected, and for an unknown table or archive."""
    if not head.strip(b"\0"):
        return None if expected == "webdataset" else ZEROS  # An archive without members is zeros.
    if expected not in TEXTS and CONTROL.search(head):
        return BINARY if expected == "webdataset" else None  # A table's reader says what is wrong with it.
    other = other_encoding(head)
    if other or b"\0" in head[:BINARY_BYTES]:
        return other or BINARY
    body = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    lines = [line for line in body.splitlines() if line.strip()]
    if is_cut and len(lines) > 1:
        lines.pop()  # Its end is not read.
    if body.startswith(b"["):
        return _array_kind(lines, expected)
    if body.startswith(b"{"):
        return _object_kind(lines, expected)
    return _plain_kind(lines, expected)


def _array_kind(lines: list[bytes], expected: str) -> FileKind | None:
    """The kind of a text that begins with [; JSONL may begin with a line that is an array by mistake."""
    if expected == "json":
        return None
    is_array = re.match(rb"\[\s*+(?:\{|$)", lines[0]) is not None
    has_own_lines = len(lines) > 1 and all(map(_is_json, lines[1:3]))
    return ARRAY if is_array and not has_own_lines else None


def _object_kind(lines: list[bytes], expected: str) -> FileKind | None:
    """The kind of a text that begins with {."""
    if all(re.match(rb"\{\s*+'", line) for line in lines):
        return DICTS
    if lines[0].strip() == b"{" and len(lines) > 1 and lines[1].lstrip().startswith(b'"'):
        return OBJECT if expected == "json" else OBJECTS
    if expected == "json":
        return JSONL if len(lines) > 1 and any(map(_is_json, lines[:2])) else OBJECT
    return None if expected == "jsonl" else JSONL


def _plain_kind(lines: list[bytes], expected: str) -> FileKind | None:
    """The kind of a text that begins like no JSON."""
    has_json = any(line.lstrip().startswith((b"{", b"[")) for line in lines[1:])
    if not has_json and len(lines) > 1 and HEADER.fullmatch(lines[0]):
        return CSV
    if expected in ("jsonl", "csv") and (expected == "csv" or has_json or len(lines) < MIN_TEXT_LINES):
        return None
    shown = shorten(ascii(lines[0].decode(errors="replace")), SHOWN_TEXT)
    return FileKind(f"text that begins with {shown}", "fetch it again, or write its samples in one of the formats")


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
