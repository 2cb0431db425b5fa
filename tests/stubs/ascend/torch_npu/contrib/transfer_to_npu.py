"""Stub of the module whose import replaces torch's "cuda" by "npu"; the stub replaces nothing."""
