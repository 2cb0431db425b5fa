"""JSON: one array of samples, as LLaVA and ShareGPT are published.

This scanner is our own: the index needs the byte offsets of the elements, of files that do not fit into memory and may
be damaged.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from longvita.data.errors import Reason, SampleError
from longvita.data.formats.base import MAX_SAMPLE_BYTES, READ_BYTES, Part, Place, TextFormat
from longvita.data.sample import Sample
from longvita.data.storage import remote

TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+("?)|[{\[]|[}\]]|[^\s,:{}\[\]"]++', re.DOTALL)
"""A string (group 1 is empty if its end is not read yet), an opening or closing bracket, or a bare word."""
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_FLAT = rb'\{(?:[^"{}]++|' + _STRING + rb")*+\}"
SHALLOW = re.compile(rb'\{(?:[^"{}]++|' + _STRING + rb"|" + _FLAT + rb")*+\}", re.DOTALL)
"""An object with one level of nested objects, as most samples are: one match instead of one for each TOKEN."""
BEGINNING = re.compile(rb"(?:\xef\xbb\xbf)?\s*+\[")
"""The start of a file: byte order mark, white space, and the array's bracket."""
ENDING = re.compile(rb"\s*+,?\s*+\]\s*+")
"""The end of a file after the last element."""
PAIRS = {b"{": b"{}", b"[": b"[]"}


class JsonArray(TextFormat):
    """One sample for each element."""

    name = "json"

    def parts(self, path: str, part_bytes: int) -> list[Part]:
        """Parts that begin with the first sample at or after each multiple of `part_bytes`."""
        size, start = remote.size(path), array_start(path)
        bounds: list[int] = []
        end = start
        for offset, element in elements(path, Part(start, size)):
            if not bounds or offset // part_bytes > bounds[-1] // part_bytes:
                bounds.append(offset)
            end = offset + len(element)
        if not _is_closed(path, end, size):
            end, bounds = size, bounds or [start]
        return [Part(first, stop) for first, stop in itertools.pairwise([*bounds, end])]

    def samples(self, path: str, part: Part) -> Iterator[tuple[Place, Sample | SampleError | None]]:
        """One sample for each element."""
        number, end, is_cut = 0, part.start, False
        for number, (offset, element) in enumerate(elements(path, part), start=1):
            end = offset + len(element)
            place = Place(offset, len(element), number)
            try:
                yield place, self.parse(element)
            except SampleError as error:
                is_cut = end == part.end
                yield place, error
        # The last part of a closed array ends before its bracket (see `parts`).
        if part.end == remote.size(path) and not is_cut:
            detail = f"the array is not closed at its end: {part.end - end} bytes from byte {end} on are not read"
            yield Place(end, 0, number + 1), SampleError(Reason.INVALID_JSON, detail)


def _is_closed(path: str, end: int, size: int) -> bool:
    """Whether only the array's bracket follows the last element, which ends at byte `end`."""
    with remote.open_file(path) as file:
        file.seek(end)
        return size - end <= READ_BYTES and ENDING.fullmatch(file.read(READ_BYTES)) is not None


def array_start(path: str) -> int:
    """The byte after the array's opening bracket."""
    with remote.open_file(path) as file:
        head = BEGINNING.match(file.read(READ_BYTES))
    return head.end() if head else 0


def elements(path: str, part: Part) -> Iterator[tuple[int, bytes]]:
    """First byte and content of each element of a part of an array; the last one may be truncated."""
    scan = _Scan(part.start)
    left = part.end - part.start
    with remote.open_file(path) as file:
        file.seek(part.start)
        while not scan.ended:
            block = file.read(min(READ_BYTES, left))
            left -= len(block)
            yield from scan.feed(block)


class _Scan:
    """Finds the elements of an array, block by block."""

    def __init__(self, offset: int):
        self.ended = False
        self._buffer, self._base = b"", offset
        self._scanned = 0
        """Bytes of the buffer that are scanned."""
        self._first: int | None = None
        """First byte of the open element in the buffer."""
        self._pair = b""
        self._depth = 0
        """Its open brackets of the kind of its first one; others that do not match damage this element alone."""

    def feed(self, block: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the elements that end in a block; an empty block is the end of the part."""
        kept = self._scanned if self._first is None else self._first
        self._base += kept
        self._buffer = self._buffer[kept:] + block
        self._scanned -= kept
        self._first = None if self._first is None else 0
        while token := self._next_token():
            if block and self._may_continue(token):
                break
            self._scanned = token.end()
            if self._first is None and token[0] == b"]":
                self.ended = True
                return
            if self._closes(token):
                yield self._element(self._scanned)
        if self._first is not None and (not block or len(self._buffer) > MAX_SAMPLE_BYTES):
            # An element of this length has brackets that do not match.
            yield self._element(len(self._buffer))
            self.ended = True
        self.ended |= not block

    def _next_token(self) -> re.Match[bytes] | None:
        token = TOKEN.search(self._buffer, self._scanned)
        if self._first is None and token and token[0] == b"{":
            return SHALLOW.match(self._buffer, token.start()) or token
        return token

    def _may_continue(self, token: re.Match[bytes]) -> bool:
        if token[0].startswith(b"{"):
            return False
        if token[0].startswith(b'"'):
            return not token[1]
        return token[0] not in b"{}[]" and token.end() == len(self._buffer)

    def _closes(self, token: re.Match[bytes]) -> bool:
        """Whether an element ends with a token."""
        if self._first is None:
            self._first = token.start()
            self._pair = PAIRS.get(token[0], b"")
        if token[0] in self._pair:
            self._depth += 1 if token[0] == self._pair[:1] else -1
        return self._depth <= 0

    def _element(self, end: int) -> tuple[int, bytes]:
        first = self._first or 0
        self._first, self._depth = None, 0
        return self._base + first, self._buffer[first:end]
