"""Long-VITA: vision-language models from one tile to a million tokens, on megatron-core."""

__version__ = "0.1.0"
