"""The Nvidia platform: Transformer Engine, flash-attn and torch."""
