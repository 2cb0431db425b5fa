"""A training stage: step, optimizer, checkpoints, metrics, stopping and resuming."""
