"""The parts of benchmarks/ranks.py."""
