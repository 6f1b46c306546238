"""Compile, execute, compare, benchmark and profile."""
