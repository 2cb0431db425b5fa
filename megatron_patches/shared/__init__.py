"""Patches that several platforms need."""
