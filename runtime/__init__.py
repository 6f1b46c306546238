"""Compile, execute, compare, benchmark and profile."""

from runtime.compare import compare
from runtime.compile import Compiled, compile
from runtime.persist import load

__all__ = ["Compiled", "compare", "compile", "load"]
