"""Micro batches: workers that decode ahead, what the ranks of a replica agree on, and assembly."""
