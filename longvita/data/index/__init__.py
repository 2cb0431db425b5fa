"""The index of a data file: where each sample lies, its text's length, and what its media's headers tell."""
