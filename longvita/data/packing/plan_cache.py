"""Packing plans on disk: written beside the run that first needs one, mapped by those after it.

A plan is a function of what its file's name is the hash of, so one that is there is right. Training does not wait for
it: the sequences that a step needs are packed at once, and a thread of one process packs the whole epoch meanwhile.
Small plans are packed sooner than read and are not kept; of the others, those used last are.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from longvita.config.schema import Config
from longvita.data.mix.catalog import Catalog, index_folder
from longvita.data.mix.mixture import shuffle
from longvita.data.packing.packer import PACKER_VERSION, EpochPlan, PackingPlan

PAUSE_SECONDS = 0.005
"""Between two windows of the thread: the process that it is in has other work."""

LEAST_SAMPLES = 10_000
"""Fewest samples of a plan that is kept: a tenth of a second's packing."""
LOCK = ".plans.lock"
"""File that the process holds which writes a plan; others leave theirs unwritten."""
MOST_PLANS = 32
"""Plans that are kept in a folder: eight bytes a sample each."""


class StoredPlan:
    """An epoch's plan, mapped from a file. The ranks of a machine share its pages."""

    def __init__(self, path: Path):
        self._samples = np.load(path / "samples.npy", mmap_mode="r")
        self._starts = np.load(path / "starts.npy", mmap_mode="r")
        self.fill = float(np.load(path / "fill.npy"))

    @property
    def num_sequences(self) -> int:
        """Sequences of the whole epoch."""
        return len(self._starts) - 1

    def sequence(self, number: int) -> np.ndarray | None:
        """See EpochPlan."""
        if number >= self.num_sequences:
            return None
        return np.asarray(self._samples[self._starts[number] : self._starts[number + 1]])

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """See PackingPlan; mapped."""
        return self._samples, self._starts


def plan_epoch(catalog: Catalog, config: Config, epoch: int) -> PackingPlan:
    """Return the sequences of one epoch of a catalog: stored next to the indexes if packed before, else packed now."""
    length, taken = config.data.sequence_length, catalog.taken

    def pack() -> EpochPlan:
        samples = shuffle(taken, config.seed, epoch)
        return EpochPlan(samples, catalog.lengths[samples], length, config.seed, epoch)

    name = plan_name(taken, catalog.lengths[taken], length, config.seed, epoch)
    return cached_plan(index_folder(config), name, len(taken), pack)


def plan_name(taken: np.ndarray, lengths: np.ndarray, sequence_length: int, seed: int, epoch: int) -> str:
    """Names the plan of what `EpochPlan` is a function of; `taken` [d] before its shuffle, `lengths` [d] its tokens."""
    digest = hashlib.blake2b(digest_size=12)
    digest.update(repr((PACKER_VERSION, sequence_length, seed, epoch, len(taken))).encode())
    for column in (taken, lengths):
        digest.update(np.ascontiguousarray(column, np.int64).data)
    return f"plan-{digest.hexdigest()}"


def cached_plan(folder: Path, name: str, num_samples: int, make: Callable[[], EpochPlan]) -> PackingPlan:
    """The plan of this name from the folder; else the one that `make` gives, which goes there in the meantime."""
    path = folder / name
    with contextlib.suppress(OSError):  # It is not there, or another process has just taken it away.
        stored = StoredPlan(path)
        _mark_as_used(path)
        return stored
    plan = make()
    if num_samples < LEAST_SAMPLES:
        return plan
    threading.Thread(target=_store, args=(path, plan.again()), name="packing plan", daemon=True).start()
    return plan


def _store(path: Path, plan: EpochPlan) -> None:
    """Packs the whole epoch and puts it where `cached_plan` looks, unless another process is at it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.parent / LOCK, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.is_dir():
                _write(path, plan)
                _drop_oldest(path.parent)
    except OSError:
        return  # Another process writes it, or the folder cannot be written to: the plan in memory is the same.


def _mark_as_used(path: Path) -> None:
    with contextlib.suppress(OSError):  # The folder may be one for reading alone.
        os.utime(path)


def _drop_oldest(folder: Path) -> None:
    """Leaves the plans that were used last. A process that has one of the others mapped keeps its pages."""
    plans = sorted(folder.glob("plan-*"), key=lambda plan: plan.stat().st_mtime, reverse=True)
    for plan in plans[MOST_PLANS:]:
        shutil.rmtree(plan, ignore_errors=True)


def _write(path: Path, plan: EpochPlan) -> None:
    number = 0
    while plan.sequence(number) is not None:
        number += 1
        if plan.starts_window(number):
            time.sleep(PAUSE_SECONDS)
    draft = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    draft.mkdir(exist_ok=True)
    samples, starts = plan.flat()
    np.save(draft / "samples.npy", samples)
    np.save(draft / "starts.npy", starts)
    np.save(draft / "fill.npy", plan.fill)
    os.rename(draft, path)
