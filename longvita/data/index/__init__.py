"""The index of a data file: the place of each sample, the length of its text, and the headers of its media files."""
