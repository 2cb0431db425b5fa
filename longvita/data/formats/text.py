"""Text of data files: UTF-8 with or without a byte order mark, and JSON. Other encodings are named."""

from __future__ import annotations

import json
from typing import Any

from longvita.data.errors import Reason, SampleError

HEAD_BYTES = 4
"""Bytes from which UTF-16 and UTF-32 are recognised."""


def other_encoding(head: bytes) -> str | None:
    """Return why a text that begins with these bytes is no UTF-8; None if it may be."""
    encoding = json.detect_encoding(head[:HEAD_BYTES])
    if encoding.startswith("utf-8"):
        return None
    name = encoding.upper()[:6]
    return f"it is {name}, not UTF-8; fix: iconv -f {name} -t UTF-8 OLD > NEW"


def decode(content: bytes, name: str) -> str:
    """Decode a text. Raises SampleError(invalid_sample) if it is no UTF-8."""
    other = other_encoding(content)
    if other:
        raise SampleError(Reason.INVALID_SAMPLE, f"{name} is no text: {other}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SampleError(Reason.INVALID_SAMPLE, f"{name} is not UTF-8: {error.reason} at byte {error.start}") from None


def parse_json(content: bytes, name: str = "") -> Any:
    """Parse a JSON text; `name` is that of a part of a sample. Raises SampleError(invalid_json)."""
    what = f"{name} is not JSON" if name else "not JSON"
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
        raise SampleError(Reason.INVALID_SAMPLE, f"{name or 'a record'} is a JSON object, this is {kind}")
    return value
