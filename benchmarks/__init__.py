"""Measurements: run them on an idle machine. Tables go to benchmarks/results."""
