"""The base class of errors that a user can fix."""


class UserError(Exception):
    """An error whose text says what the user has to change.

    The command prints the text without a traceback and ends with `exit_code`; any other exception is a defect of this
    project and keeps its traceback. Derive from the fitting built-in class as well: `class ConfigError(UserError,
    ValueError)`.
    """

    exit_code = 2


USER_ERRORS: tuple[type[Exception], ...] = (UserError, FileNotFoundError, NotADirectoryError, PermissionError)
"""Errors that are printed as one message: those of this project, and files that are missing or not accessible."""
