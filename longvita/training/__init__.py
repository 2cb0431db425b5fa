"""A training stage: the run, its steps, optimizer, metrics, report, stopping and resuming."""
