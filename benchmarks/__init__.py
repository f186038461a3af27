"""Benchmarks: each one command that prints a small table and records it in benchmarks/results/."""
