"""Pictures cut into tiles, and frames taken from videos."""
