"""Benchmarks of a model: needle in a video, Video-MME. `longvita evaluate` runs them over replicas and resumes."""
