"""The verbs of `longvita data`, one file each."""
