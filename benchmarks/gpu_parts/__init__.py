"""What `benchmarks/gpu.py` measures, a module a part: each yields its rows, and runs in a process of its own."""
