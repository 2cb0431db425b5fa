"""Exact attention over packed, split and cached sequences: the kernel contract and one file per method."""
