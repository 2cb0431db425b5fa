"""Exact attention over packed, split and cached sequences: kernel contract, core attention, ring, Ulysses, KV cache."""
