"""What a file is, by its first bytes: archives, tables, and what is downloaded in place of a file."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class FileKind:
    """A kind of file."""

    what: str
    """As in "it is a gzip file"."""
    fix: str
    """How to get a file that can be read."""
    format: str = ""
    """Name of the format of data files that it is; empty if none reads it."""

    def __str__(self) -> str:
        return f"it is {self.what}; fix: {self.fix}"


PARQUET = FileKind("a Parquet table", "set its source's format to parquet, or name it *.parquet", "parquet")
ARROW = FileKind("an Arrow table", "name it *.arrow, and remove the source's format if another one is set", "arrow")
TAR = FileKind("a tar archive", "set its source's format to webdataset, or name it *.tar", "webdataset")
PLACEHOLDERS = {
    rb"version https://git-lfs\.github\.com/spec/": FileKind(
        "a Git LFS pointer in place of the file", "git lfs pull in its repository"
    ),
    rb"/annex/objects/": FileKind("a git-annex pointer in place of the file", "git annex get in its repository"),
    rb"(?:\xef\xbb\xbf)?\s*+<(?i:!doctype html|html|head|body)\b": FileKind(
        "an HTML page, such as a login or error page, in place of the file",
        "fetch it again, with a login if its address requires one",
    ),
    rb"(?:\xef\xbb\xbf)?\s*+<\?xml[^>]*+>\s*+<Error\b": FileKind(
        "the error of a store in place of the file", "fetch it again, with a login if its store requires one"
    ),
}
"""Patterns of the first bytes of what is downloaded or checked out in place of a file, and the kind of each."""
KINDS = PLACEHOLDERS | {
    rb"(?:\xef\xbb\xbf)?\s*+<\?xml\b": FileKind("XML", "write its samples as JSONL"),
    rb"\x1f\x8b": FileKind("a gzip file", "gunzip -c OLD > NEW"),
    rb"BZh[1-9]1AY&SY": FileKind("a bzip2 file", "bunzip2 -c OLD > NEW"),
    rb"\xfd7zXZ\0": FileKind("an xz file", "xz -dc OLD > NEW"),
    rb"\x28\xb5\x2f\xfd": FileKind("a zstd file", "zstd -dc OLD > NEW"),
    rb"\x04\x22\x4d\x18": FileKind("an lz4 file", "lz4 -dc OLD > NEW"),
    rb"PK\x03\x04": FileKind("a ZIP archive (.xlsx and .npz files are too)", "unpack it, or write its table as JSONL"),
    rb"7z\xbc\xaf\x27\x1c": FileKind("a 7z archive", "unpack it"),
    rb"Rar!\x1a\x07": FileKind("a RAR archive", "unpack it"),
    rb"SQLite format 3\0": FileKind("an SQLite database", "write its table as JSONL or Parquet"),
    rb"\x89HDF\r\n\x1a\n": FileKind("an HDF5 file", "write its samples as JSONL or Parquet"),
    rb"PAR1": PARQUET,
    rb"ARROW1\0\0|\xff\xff\xff\xff": ARROW,
}
"""All patterns of first bytes, and the kind of each."""
HEAD_BYTES = 2 << 10
"""Bytes at the beginning of a file that its kind is found by."""


def kind_of(head: bytes) -> FileKind | None:
    """Return the kind of a file that begins with these bytes; None for text and for what is not known."""
    return TAR if _is_tar(head) else _matching(head, KINDS)  # A tar archive begins with a name, which may be any text.


def placeholder_of(head: bytes) -> FileKind | None:
    """Return what is in place of a file that begins with these bytes; None if it may be the file."""
    return _matching(head, PLACEHOLDERS)


def _matching(head: bytes, kinds: Mapping[bytes, FileKind]) -> FileKind | None:
    return next((kind for pattern, kind in kinds.items() if re.match(pattern, head)), None)


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True
