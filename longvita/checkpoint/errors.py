"""The error that everything about checkpoints raises."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written as asked; the text names the tensor or file and the way out."""
