"""MindSpeed's logging: every message of the process from INFO on goes to stdout."""

from __future__ import annotations

from logging.config import dictConfig

CONFIG = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler", "level": "INFO", "stream": "ext://sys.stdout"}},
    "root": {"handlers": ["console"], "level": "INFO"},
}


def set_log_config() -> None:
    """Replace the root logger's handlers."""
    dictConfig(CONFIG)
