"""The verbs of `longvita config`, one file each."""
