"""Packing of samples into training sequences, and their division over replicas."""
