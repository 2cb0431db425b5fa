"""Shared file systems and remote stores fail for a moment: what they failed to give is asked for again."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from longvita.data.errors import MediaError

T = TypeVar("T")

logger = logging.getLogger(__name__)

WAITS = (1.0, 4.0, 15.0)
"""Seconds between the tries."""
OF_THE_STORE = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "ETIMEDOUT", "EREMOTEIO", "ENOTCONN", "ECONNRESET", "ECONNREFUSED", "ECONNABORTED"),
        *("ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "EAGAIN", "EBUSY", "EPIPE", "ENOLCK", "ENXIO"),
    )
    if hasattr(errno, name)
)
"""Errors that a file on a healthy store does not give, whatever it holds."""


def store_failure(error: BaseException | None) -> OSError | None:
    """The failure of a store among an error and its causes, if there is one."""
    while error is not None:
        # FFmpeg gives EIO for damaged files too.
        is_ambiguous = type(error).__module__.startswith("av.") and getattr(error, "errno", None) == errno.EIO
        if isinstance(error, OSError) and error.errno in OF_THE_STORE and not is_ambiguous:
            return error
        error = error.__cause__
    return None


def with_retries(read: Callable[[], T], name: str, beat: Callable[[], None] = lambda: None) -> T:
    """What `read` gives, which is called again where the store failed, len(WAITS) + 1 times at most.

    Any OSError of its own is the store's, and a MediaError if it comes of one; the last one is raised. `name` is for
    the log; `beat` is called before each wait, as a sign of life.
    """
    for wait in WAITS:
        try:
            return read()
        except (OSError, MediaError) as error:
            if isinstance(error, MediaError) and store_failure(error) is None:
                raise
            logger.warning("%s: %s; reading it again in %.0f s", name, error, wait)
            beat()
            time.sleep(wait)
    return read()
