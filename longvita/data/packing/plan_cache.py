"""Packing plans on disk: the first run that needs a plan writes it in the background, later ones map it.

The name of a plan is the hash of its inputs, so a stored plan is valid. Training does not wait for the file: it packs
the sequences that a step needs itself, while a thread of one process packs the entire epoch. Small plans are faster to
pack than to read and are not stored; of the others the most recently used are kept.
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
from longvita.data.document import index_folder
from longvita.data.mix.catalog import Catalog
from longvita.data.mix.mixture import shuffle
from longvita.data.packing.packer import PACKER_VERSION, EpochPlan, PackingPlan, StoredPlan

PAUSE_SECONDS = 0.005
"""Pause of the thread after each window, which leaves time to the rest of the process, seconds."""

MIN_SAMPLES = 10_000
"""Fewest samples of a plan that is stored: about 0.1 s of packing."""
LOCK = ".plans.lock"
"""Lock file of the process that writes a plan; the others do not write theirs."""
MAX_PLANS = 32
"""Plans that are kept in a folder, each of eight bytes per sample."""


def plan_epoch(catalog: Catalog, config: Config, epoch: int) -> PackingPlan:
    """Plan one epoch of a catalog; the plan is stored next to the indexes."""
    length, selected = config.data.sequence_length, catalog.selected

    def pack() -> EpochPlan:
        samples = shuffle(selected, config.seed, epoch)
        return EpochPlan(samples, catalog.lengths[samples], length, config.seed, epoch)

    name = plan_name(selected, catalog.lengths[selected], length, config.seed, epoch)
    return cached_plan(index_folder(config), name, len(selected), pack)


def plan_name(samples: np.ndarray, lengths: np.ndarray, sequence_length: int, seed: int, epoch: int) -> str:
    """Hash the inputs of an EpochPlan: samples [d] before their shuffle, their lengths [d] in tokens, and the rest."""
    digest = hashlib.blake2b(digest_size=12)
    digest.update(repr((PACKER_VERSION, sequence_length, seed, epoch, len(samples))).encode())
    for column in (samples, lengths):
        digest.update(np.ascontiguousarray(column, np.int64).data)
    return f"plan-{digest.hexdigest()}"


def cached_plan(folder: Path, name: str, num_samples: int, make: Callable[[], EpochPlan]) -> PackingPlan:
    """Return the stored plan of this name, or that of `make`, which a thread then stores."""
    path = folder / name
    with contextlib.suppress(OSError):  # It is not stored, or another process has just deleted it.
        stored = StoredPlan(path)
        with contextlib.suppress(OSError):  # The folder may be read-only.
            os.utime(path)
        return stored
    plan = make()
    if num_samples < MIN_SAMPLES:
        return plan
    threading.Thread(target=_store, args=(path, plan.unpacked_copy()), name="packing plan", daemon=True).start()
    return plan


def _store(path: Path, plan: EpochPlan) -> None:
    """Pack the entire epoch and store it, unless another process is writing a plan."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.parent / LOCK, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.is_dir():
                _write(path, plan)
                _drop_oldest(path.parent)
    except OSError:
        return  # Another process writes it, or the folder is read-only: the plan in memory is identical.


def _drop_oldest(folder: Path) -> None:
    """Delete all but the most recently used plans. A process that has mapped a deleted plan can still read it."""
    plans = sorted(folder.glob("plan-*"), key=lambda plan: plan.stat().st_mtime, reverse=True)
    for plan in plans[MAX_PLANS:]:
        shutil.rmtree(plan, ignore_errors=True)


def _write(path: Path, plan: EpochPlan) -> None:
    while plan.pack_window():
        time.sleep(PAUSE_SECONDS)
    draft = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    draft.mkdir(exist_ok=True)
    samples, starts = plan.flat()
    np.save(draft / "samples.npy", samples)
    np.save(draft / "starts.npy", starts)
    np.save(draft / "fill.npy", plan.fill)
    os.rename(draft, path)
