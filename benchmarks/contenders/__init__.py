"""What the benchmarks compare: a module each, with `prepare(task)`, which gives a function of a seed (worker.py)."""
