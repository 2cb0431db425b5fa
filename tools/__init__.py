"""Commands that people expect by name: the demo, the converter, the quickstart, benchmarks."""
