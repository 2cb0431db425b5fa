"""A format that reports a file which as a whole is not of it as one broken sample: an index counts and names it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from longvita.data.errors import Reason, SampleError
from longvita.data.formats.base import Format, Part, Place
from longvita.data.sample import Sample

WHOLE_FILE = Part(0, 0)
"""The one part of such a file; no format makes an empty part."""


class CheckedFormat:
    """A format with the check of its files."""

    def __init__(self, format: Format):
        self.name = format.name
        self._format = format

    def problem(self, path: str) -> str | None:
        """As of the format."""
        return self._format.problem(path)

    def parts(self, path: str, part_bytes: int) -> list[Part]:
        """The format's parts, or WHOLE_FILE."""
        return [WHOLE_FILE] if self.problem(path) else self._format.parts(path, part_bytes)

    def digest(self, path: str, part: Part) -> str:
        """The format's digest, or that of the problem."""
        if part != WHOLE_FILE:
            return self._format.digest(path, part)
        return hashlib.blake2b((self.problem(path) or "").encode(), digest_size=16).hexdigest()

    def samples(self, path: str, part: Part) -> Iterator[tuple[Place, Sample | SampleError | None]]:
        """The format's samples, or one error."""
        if part != WHOLE_FILE:
            yield from self._format.samples(path, part)
        elif problem := self.problem(path):
            yield Place(0, 0, 1), SampleError(Reason.WRONG_FORMAT, problem)

    def read(self, path: str, place: Place, with_media: bool = True) -> Sample:
        """As of the format."""
        return self._format.read(path, place, with_media)
