"""Programs around the package: the demo, the converter, the quickstart, benchmarks."""
