"""Retries of reads, because shared file systems and remote stores fail temporarily."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from longvita.data.errors import MediaError
from longvita.errors import shorten

T = TypeVar("T")

logger = logging.getLogger(__name__)

WAITS = (1.0, 4.0, 15.0)
"""Seconds between the attempts."""
STORE_ERRORS = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "ETIMEDOUT", "EREMOTEIO", "ENOTCONN", "ECONNRESET", "ECONNREFUSED", "ECONNABORTED"),
        *("ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "EAGAIN", "EBUSY", "EPIPE", "ENOLCK", "ENXIO"),
    )
    if hasattr(errno, name)
)
"""Errors that come from a store and not from the contents of a file."""


def store_failure(error: BaseException | None) -> OSError | None:
    """Return the failure of a store among an error and its causes, if there is one."""
    while error is not None:
        # FFmpeg reports EIO for damaged files too.
        is_ambiguous = type(error).__module__.startswith("av.") and getattr(error, "errno", None) == errno.EIO
        if isinstance(error, OSError) and error.errno in STORE_ERRORS and not is_ambiguous:
            return error
        error = error.__cause__
    return None


def with_retries(read: Callable[[], T], name: str, heartbeat: Callable[[], None] = lambda: None) -> T:
    """Call `read` until the store does not fail, at most len(WAITS) + 1 times, and return its result.

    An OSError counts as a failure of the store, a MediaError if a failure of the store caused it; the last one is
    raised. `name` is for the log; `heartbeat` is called before each wait.
    """
    for wait in WAITS:
        try:
            return read()
        except (OSError, MediaError) as error:
            if isinstance(error, MediaError) and store_failure(error) is None:
                raise
            logger.warning("%s: %s; retrying in %.0f s", name, shorten(error), wait)
            heartbeat()
            time.sleep(wait)
    return read()
