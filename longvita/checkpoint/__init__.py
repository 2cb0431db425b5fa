"""Checkpoints: our own training checkpoints, and Hugging Face folders, read and written at any TP and PP."""
