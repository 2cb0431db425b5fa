"""Comparison of a model with golden vectors."""
