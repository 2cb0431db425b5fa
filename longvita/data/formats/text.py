"""Text of data files: UTF-8 with or without a byte order mark, and JSON. Other encodings are named."""

from __future__ import annotations

import json
from typing import Any

from longvita.data.errors import Reason, SampleError
from longvita.data.file_kinds import FileKind
from longvita.errors import shorten

SHOWN_BYTES = 64
"""Bytes at the beginning of a text that must be printable in its encoding."""


def other_encoding(head: bytes) -> FileKind | None:
    """Return the encoding of a text that begins with these bytes and is no UTF-8; None if it may be, or is no text."""
    encoding = json.detect_encoding(head[:4])
    shown = head[:SHOWN_BYTES].decode(encoding, "ignore").lstrip("\ufeff").split()
    if encoding.startswith("utf-8") or not shown or not "".join(shown).isprintable():
        return None
    name = encoding.upper()[:6]
    return FileKind(f"{name}, not UTF-8", f"iconv -f {name} -t UTF-8 OLD > NEW")


def decode(content: bytes, name: str) -> str:
    """Decode a text. Raises SampleError(invalid_sample) if it is no UTF-8."""
    other = other_encoding(content)
    if other:
        raise SampleError(Reason.INVALID_SAMPLE, f"{shorten(name)} is no text: {other}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SampleError(
            Reason.INVALID_SAMPLE, f"{shorten(name)} is not UTF-8: {error.reason} at byte {error.start}"
        ) from None


def parse_json(content: bytes, name: str = "") -> Any:
    """Parse a JSON text; `name` is that of a part of a sample. Raises SampleError(invalid_json)."""
    what = f"{shorten(name)} is not JSON" if name else "not JSON"
    other = other_encoding(content)
    if other:
        raise SampleError(Reason.INVALID_JSON, f"{what}: {other}")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SampleError(Reason.INVALID_JSON, f"{what}: {error}") from None


def parse_object(content: bytes, name: str = "") -> dict[str, Any]:
    """Parse a JSON object; `name` as for parse_json. Raises SampleError: invalid_json or invalid_sample."""
    value = parse_json(content, name)
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise SampleError(Reason.INVALID_SAMPLE, f"{shorten(name) or 'a record'} is a JSON object, this is {kind}")
    return value
