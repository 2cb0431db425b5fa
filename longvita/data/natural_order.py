"""The order of file names that people expect: frame2 before frame10."""

from __future__ import annotations

import re


def natural_key(name: str) -> tuple:
    """Key for sorting names, in which numbers are compared as numbers, of any length."""
    return tuple(_key_of_part(part) for part in re.split(r"(\d+)", name))


def _key_of_part(part: str) -> tuple:
    digits = part.lstrip("0")
    return (1, len(digits), digits, part) if part.isdecimal() else (0, 0, part)
