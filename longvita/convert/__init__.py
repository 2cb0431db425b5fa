"""Conversion of checkpoints: between Hugging Face formats, training checkpoints and optimizer formats."""
