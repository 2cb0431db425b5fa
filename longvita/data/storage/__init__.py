"""Local and remote files, with retries of reads that fail for a moment."""
