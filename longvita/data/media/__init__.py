"""Pictures cut into tiles, and frames sampled from videos."""
