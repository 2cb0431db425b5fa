"""A dry run of a training run at full size: chosen ranks by shape, and every file that the run would read."""
