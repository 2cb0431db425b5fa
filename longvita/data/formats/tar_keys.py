"""The samples of an archive by the keys of its members, wherever these lie.

A run is consecutive members with one key, and nearly every sample is one run. Of an archive of a million members only
hashes of keys are held: 24 bytes for each run.
"""

from __future__ import annotations

import array
import hashlib
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from longvita.data.formats.tar import Member, listed_members


def key_of(name: str) -> str:
    """The name of a member up to the first dot after the folders: a.0.jpg and a.1.jpg belong to one sample."""
    folder, name = os.path.split(name)
    return os.path.join(folder, name.split(".", 1)[0])


@dataclass(frozen=True)
class Runs:
    """The runs of a range of an archive, in their order."""

    keys: np.ndarray
    """[n] uint64, hashes of their keys."""
    starts: np.ndarray
    """[n] uint64, first byte of the first header of each."""
    ends: np.ndarray
    """[n] uint64, first byte after the last member of each."""
    damage: str
    """Why the archive cannot be read after the last run; empty if it can."""
    members: list[list[Member]]
    """The members of each run; empty if there are more than may be held."""

    @property
    def is_scattered(self) -> bool:
        """Whether a key has several runs."""
        return len(self._firsts) < len(self.keys)

    def samples(self) -> Iterator[np.ndarray]:
        """The numbers of the runs of each key, in the order of the keys' first runs."""
        ends = np.append(self._firsts[1:], len(self.keys))
        for number in np.argsort(self._order[self._firsts]):
            yield self._order[self._firsts[number] : ends[number]]

    def independent_starts(self) -> np.ndarray:
        """First byte of each run from which on no key of the runs before it comes again: there a part may begin.

        In a damaged archive with scattered samples, the last part has one of them, so that it shows that others may
        have lost members.
        """
        counts = np.diff(np.append(self._firsts, len(self.keys)))
        last = np.empty(len(self.keys), np.int64)
        last[self._order] = np.repeat(self._order[self._firsts + counts - 1], counts)
        open_until = np.concatenate([[-1], np.maximum.accumulate(last)[:-1]])
        is_free = open_until < np.arange(len(last))
        if self.damage and self.is_scattered:
            is_free[self._order[self._firsts[counts > 1]].max() + 1 :] = False
        return self.starts[is_free]

    @cached_property
    def _order(self) -> np.ndarray:
        """[n] int64, run numbers, those of one key next to each other and ascending."""
        return np.argsort(self.keys, kind="stable")

    @cached_property
    def _firsts(self) -> np.ndarray:
        """[k] int64, the place in `_order` of each key's first run."""
        keys = self.keys[self._order]
        return np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])


def find_runs(path: str, start: int, end: int, max_held: int = 0) -> Runs:
    """Find the runs whose headers are in [start, end), up to the first damage. `start` is that of a header.

    max_held: members that may be held.
    """
    keys, starts, ends = (array.array("Q") for _ in range(3))
    held: list[list[Member]] = []
    count, last, damage = 0, None, ""
    try:
        for count, member in enumerate(listed_members(path, start, end), start=1):
            key = key_of(member.name)
            if key != last:
                keys.append(_hash(key))
                starts.append(member.header)
                ends.append(member.end)
            if count <= max_held:
                held += [[]] if key != last else []
                held[-1].append(member)
            ends[-1], last = member.end, key
            damage = f"it ends within {member.name}" if member.is_cut else ""
    except tarfile.TarError as error:
        damage = str(error)
    columns = [np.array(one, np.uint64) for one in (keys, starts, ends)]
    return Runs(columns[0], columns[1], columns[2], damage, held if count <= max_held else [])


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest(), "little")
