"""One fetch at a time fills a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub.utils import WeakFileLock

from longvita.data.errors import DataError


@contextlib.contextmanager
def only_fetch(folder: Path) -> Iterator[None]:
    """Lock a folder against other fetches. Raises DataError if one is running."""
    lock = folder / ".cache" / "huggingface" / "fetch.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(lock, timeout=0.1))
        except TimeoutError as error:
            raise DataError(f"another `longvita data fetch` is filling {folder}; wait for it, or end it") from error
        yield
