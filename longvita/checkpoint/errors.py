"""The error raised about checkpoints."""

from longvita.errors import UserError


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be read or written as asked; the text names the tensor or file and the fix."""
