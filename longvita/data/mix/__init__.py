"""The training mix: which files and samples it holds, their order and their lengths."""
