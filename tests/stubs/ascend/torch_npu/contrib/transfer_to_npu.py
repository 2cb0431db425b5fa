"""Stands for the module whose import turns torch's "cuda" into "npu": over the stub there is neither to turn."""
