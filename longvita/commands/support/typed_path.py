"""The path of a picture or video as people type it, or as a terminal or file manager pastes it."""

from __future__ import annotations

import os
import shlex
import urllib.parse


def typed_path(text: str) -> str:
    """Return the path that `text` names: as it stands if that exists, else as a shell reads it.

    A shell's quotes and backslashes are removed, a file:// address becomes its path, and ~ at the beginning becomes the
    home folder. A name that has these characters itself is found, because the text as it stands comes first.
    """
    text = text.strip()
    if os.path.lexists(text):
        return text
    return os.path.expanduser(_path_of_address(_shell_word(text)))


def _shell_word(text: str) -> str:
    """The one word that a shell makes of the text; the text itself where that is none or several."""
    try:
        words = shlex.split(text)
    except ValueError:  # a quote without its end, as in "it's.png"
        return text
    return words[0] if len(words) == 1 else text


def _path_of_address(text: str) -> str:
    """The path in a file:// address of this machine; any other text as it is."""
    scheme, colon, rest = text.partition("://")
    host, slash, path = rest.partition("/")
    if not colon or scheme.lower() != "file" or host.lower() not in ("", "localhost"):
        return text
    return urllib.parse.unquote(slash + path, errors="surrogateescape")
