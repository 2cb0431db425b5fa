"""The base class of errors that a user can fix, and how errors quote values."""

MAX_QUOTED = 200
"""Most characters of a value in a message."""
MAX_WORD = 60
"""Most characters of a value that is one word, such as a role."""
KEPT_AT_END = 40
"""Characters of a shortened text that are those of its end, such as the name of a file."""


class UserError(Exception):
    """An error whose text says what the user has to change.

    The command prints the text without a traceback and ends with `exit_code`; any other exception is a defect of this
    project and keeps its traceback. Derive from the fitting built-in class as well: `class ConfigError(UserError,
    ValueError)`.
    """

    exit_code = 2


USER_ERRORS: tuple[type[Exception], ...] = (UserError, FileNotFoundError, NotADirectoryError, PermissionError)
"""Errors that are printed as one message: those of this project, and files that are missing or not accessible."""


def shorten(value: object, limit: int = MAX_QUOTED) -> str:
    """Return the text of a value on one line of at most `limit` characters, for a message.

    The middle of a longer text is left out. A record may hold pictures of megabytes where a path belongs, and errors of
    libraries may quote them.
    """
    text = str(value)
    if len(text) > limit:
        end = min(KEPT_AT_END, limit // 4)
        text = f"{text[: limit - end - 5]} ... {text[-end:]}"
    return " ".join(text.splitlines())
