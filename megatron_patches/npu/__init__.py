"""Patches for Ascend NPUs go here; there are none, as that platform is not written yet."""
