"""Quarantined samples with their reasons, and the accounting of every sample of a run."""
