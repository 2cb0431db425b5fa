"""Benchmarks of a model: needles in a video, Video-MME. `longvita evaluate` runs them over replicas, and resumes."""
