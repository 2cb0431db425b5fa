"""Patches for Nvidia GPUs go here; there are none, as that platform is not written yet."""
