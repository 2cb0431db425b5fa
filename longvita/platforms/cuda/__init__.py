"""Nvidia GPUs: Transformer Engine, flash-attn and torch."""
