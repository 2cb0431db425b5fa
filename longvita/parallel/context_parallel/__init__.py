"""Exact attention over a sequence that is split over processes, one file per method."""
