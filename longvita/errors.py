"""The mark of errors that a user can mend."""


class UserError(Exception):
    """An error whose text tells the user what to change.

    The command line prints the text alone and ends with exit code 2; any other exception is a defect of ours and keeps
    its traceback. Derive beside the built-in class that fits: `class ConfigError(UserError, ValueError)`.
    """
