"""Benchmarks: ours, its peers and a plain copy, measured in turn in one run. See ``python -m benchmarks --help``."""
